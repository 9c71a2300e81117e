"""Stage compare: what its rivals are made of stands in its key."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.config import (
    AllocationConfig,
    ComparisonConfig,
    DefaultScheme,
    Override,
    QuantizationConfig,
)
from alphaquant.evaluation import rivals
from tests.specs import moe_specs


def test_a_uniform_rival_takes_nothing_from_the_configs_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[AllocationConfig] = []

    def keep(specs: Any, config: AllocationConfig, quantization: QuantizationConfig) -> Any:
        used.append(config)
        return allocate(specs, config, quantization)

    monkeypatch.setattr(rivals, "allocate", keep)
    own = AllocationConfig(
        policy="ratio",
        target_bits=3.5,
        skip_router=False,
        overrides=(Override(pattern="*.q_proj", skip=True),),
        default=DefaultScheme(aq="fp8", group_size=16),
    )
    checkpoint: Any = SimpleNamespace(plannable=moe_specs())
    comparison = ComparisonConfig(uniform=("int4",), methods=("rtn",))
    plan: Any = SimpleNamespace(decoder_bits=3.5, schemes={})
    ((_, uniform, _),) = rivals._rivals(checkpoint, plan, own, QuantizationConfig(), comparison)
    assert set(map(str, uniform.schemes.values())) == {"int4-g128"}
    assert not uniform.activations
    assert used[0].target_bits == own.target_bits
    assert used[0].default.model_fields_set == set(DefaultScheme.model_fields)


def test_nf4_stands_once_beside_formats_of_its_bits() -> None:
    checkpoint: Any = SimpleNamespace(plannable=moe_specs())
    plan: Any = SimpleNamespace(decoder_bits=4.0, schemes={})

    def labels(*formats: str) -> list[str]:
        comparison = ComparisonConfig(uniform=formats, methods=("nf4", "awq"))
        config = QuantizationConfig()
        found = rivals._rivals(checkpoint, plan, AllocationConfig(), config, comparison)
        return [label for label, _, _ in found]

    assert labels("int3") == ["uniform int3, awq"]
    assert labels("int3", "int4", "mxfp4") == [
        "uniform int3, awq", "uniform int4, awq", "uniform mxfp4, awq", "uniform nf4, nf4"
    ]  # fmt: skip


def test_other_methods_stay_as_published_in_a_run_that_tunes() -> None:
    checkpoint: Any = SimpleNamespace(plannable=moe_specs())
    comparison = ComparisonConfig(uniform=("int4",), methods=("gptq", "awq", "rtn"))
    plan: Any = SimpleNamespace(decoder_bits=4.0, schemes={})
    found = rivals._rivals(
        checkpoint, plan, AllocationConfig(), QuantizationConfig(tune="block"), comparison
    )
    assert {rounding.method: rounding.tune for _, _, rounding in found} == {
        "gptq": "block",
        "awq": "none",
        "rtn": "none",
    }
