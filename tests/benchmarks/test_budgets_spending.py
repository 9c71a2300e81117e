"""Every policy's plan keeps the budget, and reaches the quantizer as it was made."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_groups import BF16, menu
from alphaquant.algorithms.arm_table import Knowledge
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.config.file import load_config
from alphaquant.models.checkpoint import Checkpoint
from benchmarks.budgets import knowledge as measuring
from benchmarks.budgets.spending import POLICIES, contestant_of, plans_of
from benchmarks.rivals import own
from benchmarks.rivals.formats import MIXED
from benchmarks.rivals.inputs import Model
from tests.tiny import make_model

_BITS = 4.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "olmoe", "olmoe")


@pytest.fixture(scope="module")
def known(folder: Path) -> Knowledge:
    """Alphas that grow with the place in the model, and losses by format that every linear shares."""
    specs = Checkpoint(folder).specs
    rounding = QuantizationConfig()
    config = AllocationConfig(target_bits=_BITS)
    free = [spec for spec in specs if spec.role not in ("router", "lm_head")]
    alphas = pd.DataFrame(
        {
            "linear": [spec.name for spec in specs],
            "alpha": [2.0 + place / 10 for place in range(len(specs))],
            "alpha_null": 4.0,
            "log_variance": -3.0,
            "kurtosis": 3.0,
        }
    )
    losses = pd.DataFrame(
        [
            {
                "linear": spec.name,
                "format": str(option),
                "bits_per_weight": option.bits_per_weight(spec.rows, spec.cols),
                "predicted_loss": 4.0**-option.number_format.bits,
                "output_change": 1.0,
            }
            for spec in free
            for option in menu(config, rounding)
            if option != BF16
        ]
    )
    return Knowledge(specs, config, rounding, alphas, alphas, losses)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_every_policy_keeps_the_budget(policy: Any, known: Knowledge) -> None:
    found = plans_of(policy, known, draws=3)
    assert len(found) == (3 if policy.name == "random" else 1)
    assert all(_BITS - 0.5 < one.plan.bits_per_weight <= _BITS for one in found)


def test_the_ratio_rule_gives_the_larger_alphas_the_dearer_of_uniforms_formats(
    known: Knowledge,
) -> None:
    ratio, uniform = (
        plans_of(next(p for p in POLICIES if p.name == name), known, 1)[0].plan
        for name in ("ratio", "uniform")
    )
    assert set(ratio.schemes.values()) == set(uniform.schemes.values())
    free = [spec for spec in ratio.specs if spec.role not in ("router", "lm_head")]
    bits = [ratio.schemes[spec.name].bits_per_weight(64, 64) for spec in free]
    alphas = known.hill.set_index("linear")["alpha"]
    dear = [alphas[spec.name] for spec, b in zip(free, bits, strict=True) if b == max(bits)]
    cheap = [alphas[spec.name] for spec, b in zip(free, bits, strict=True) if b == min(bits)]
    assert max(dear) > max(cheap)
    assert min(cheap) < min(dear)
    assert sum(dear) / len(dear) > max(cheap[: len(cheap) // 2])


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_the_plan_that_is_quantized_is_the_policys(
    policy: Any, known: Knowledge, folder: Path
) -> None:
    plan = plans_of(policy, known, draws=1)[0].plan
    contestant = contestant_of(policy, "GPTQ", _BITS, 0, plan)
    command = own.command(contestant, MIXED, Model("tiny", folder, 16), Path("out"), 4)
    given = [text for flag, text in pairwise(command) if flag == "--set"]
    config = load_config(None, given)
    again = allocate(Checkpoint(folder).specs, config.allocation, config.quantization)
    assert again.schemes == plan.schemes
    assert "quantize" in command
    assert contestant.mixed


def test_plans_of_other_draws_are_other_cells(known: Knowledge) -> None:
    random = next(policy for policy in POLICIES if policy.name == "random")
    found = [
        contestant_of(random, "GPTQ", _BITS, draw, one.plan)
        for draw, one in enumerate(plans_of(random, known, 3))
    ]
    assert len({one.key for one in found}) == 3
    assert len({one.options["allocation.overrides"] for one in found}) == 3


def test_knowledge_is_measured_once_and_belongs_to_the_rounding(
    known: Knowledge, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def pretended(command: list[str], log: Path, **_: Any) -> Any:
        ran.append(command)
        made = log.parent / "made"
        made.mkdir()
        known.hill.to_parquet(made / "alpha.parquet")
        known.sensitivity.to_parquet(made / "sensitivity.parquet")
        stages = [{"name": name, "artifact": str(made)} for name in ("alpha", "sensitivity")]
        log.write_text("a note\n" + json.dumps({"stages": stages}, indent=1))
        return SimpleNamespace(code=0)

    monkeypatch.setattr(measuring, "measured", pretended)
    options = SimpleNamespace(cache=tmp_path, samples=4, threads=1, limit=1, device="cpu")
    model = Model("tiny", folder, 16)
    assert measuring.knowledge(model, "GPTQ", 3.5, options, compute=False) is None  # type: ignore[arg-type]
    for bits in (3.5, 4.25):
        found = measuring.knowledge(model, "GPTQ", bits, options)  # type: ignore[arg-type]
        assert found is not None
        assert found.allocation.target_bits == bits
        assert found.quantization.act_order
    assert ["alpha.estimator=hill" in command for command in ran] == [True, False]
    pd.testing.assert_frame_equal(found.sensitivity, known.sensitivity)
    measuring.knowledge(model, "balanced", 3.5, options)  # type: ignore[arg-type]
    assert len(ran) == 4
    assert "rotation.kind=hadamard" in ran[-1]
    assert not list(tmp_path.rglob("work"))
