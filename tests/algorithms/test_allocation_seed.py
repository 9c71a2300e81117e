from __future__ import annotations

from typing import Any

import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_seed import allocation_from_seed
from alphaquant.config import QuantizationConfig
from alphaquant.errors import FormatError, PlanError
from tests.specs import moe_specs

PLAN = {
    "comment": "attention in eight bits",
    "default": {"wq": "mxfp4", "aq": "bf16", "group_size": 32},
    "overrides": [
        {"pattern": "*.self_attn.*", "wq": "mxfp8", "group_size": 32, "comment": "attention"},
        {"pattern": "*.mlp.gate", "skip": True},
        {"pattern": "lm_head", "skip": True},
        {"pattern": "*.experts.0.*", "wq": "int4-asym", "aq": "fp8", "group_size": -1},
    ],
}


def test_the_seeds_form_becomes_a_manual_allocation() -> None:
    config = allocation_from_seed(PLAN)
    assert config.policy == "manual"
    assert config.default.wq == "mxfp4"
    assert [override.pattern for override in config.overrides] == [
        entry["pattern"] for entry in PLAN["overrides"]  # type: ignore[index]
    ]  # fmt: skip
    plan = allocate(moe_specs(), config, QuantizationConfig())
    found = {name: str(scheme) for name, scheme in plan.schemes.items()}
    assert found["model.layers.1.self_attn.k_proj"] == "mxfp8"
    assert found["model.layers.1.mlp.gate"] == "bf16"
    assert found["model.layers.1.mlp.experts.0.up_proj"] == "int4-perchannel-asym"
    assert found["model.layers.1.mlp.experts.1.up_proj"] == "mxfp4"
    assert set(plan.activations.values()) == {"fp8"}


def test_a_plan_that_was_written_is_read_back() -> None:
    plan = allocate(moe_specs(), allocation_from_seed(PLAN), QuantizationConfig())
    again = allocate(
        moe_specs(), allocation_from_seed(plan.as_seed_config()), QuantizationConfig(group_size=16)
    )
    assert again.schemes == plan.schemes
    assert again.activations == plan.activations


def test_an_empty_plan_is_the_default_scheme() -> None:
    assert allocation_from_seed({}) == allocation_from_seed({"default": {}, "overrides": []})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the plan holds"),
        ({"defualt": {}}, "unknown key 'defualt' in the plan; nearest: default"),
        ({"default": {"bits": 4}}, "unknown key 'bits' in default;.*allowed: aq, group_size, wq"),
        ({"default": "mxfp4"}, "default holds 'mxfp4'"),
        ({"overrides": {"*": "int4"}}, "'overrides' holds"),
        ({"overrides": [{"wq": "int4"}]}, r"'overrides\[0\]\.pattern'.*required"),
        (
            {"overrides": [{"pattern": "a"}, {"pattern": "b", "skp": True}]},
            r"'skp' in overrides\[1\]",
        ),
        ({"overrides": [{"pattern": "a", "group_size": 0}]}, "0 is not a group size"),
        ({"overrides": [{"pattern": "a", "wq": 4}]}, r"overrides\[0\]\.wq.*found 4"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        allocation_from_seed(data)


@pytest.mark.parametrize("key", ["wq", "aq"])
def test_an_unknown_format_names_its_place_and_the_known_formats(key: str) -> None:
    data = {"overrides": [{"pattern": "*", "wq": "int4"}, {"pattern": "*", key: "int5"}]}
    with pytest.raises(FormatError, match=r"overrides\[1\].*'int5'.*int4.*mxfp8"):
        allocation_from_seed(data)
