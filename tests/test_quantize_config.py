"""GPTQModel's settings become those of a run, and a wrong one is named by its own key."""

from __future__ import annotations

from typing import Any

import pytest

from alphaquant import EXPERT_INDEX_PLACEHOLDER, QuantizeConfig
from alphaquant.algorithms.allocation import allocate
from alphaquant.config.file import load_config
from alphaquant.errors import ConfigError, PlanError
from alphaquant.plan import QuantPlan
from tests.specs import moe_specs


def plan(config: QuantizeConfig) -> QuantPlan:
    run = config.run_config()
    return allocate(moe_specs(), run.allocation, run.quantization)


def test_defaults_are_those_of_a_run_but_for_the_plan() -> None:
    from alphaquant.config import QuantizationConfig

    assert QuantizeConfig().run_config().quantization == QuantizationConfig()


def test_every_key_has_its_place() -> None:
    config = QuantizeConfig(
        bits=3,
        group_size=-1,
        desc_act=False,
        sym=False,
        damp_percent=0.05,
        quantization={"tune": "block", "method": "rtn"},
    )
    found = config.run_config().quantization
    assert (found.group_size, found.act_order, found.damping) == (-1, False, 0.05)
    assert (found.symmetric, found.tune, found.method) == (False, "block", "rtn")
    assert str(plan(config).schemes["model.layers.0.self_attn.q_proj"]) == "int3-perchannel-asym"


def test_a_recipe_is_that_of_a_run_and_named_keys_win() -> None:
    said = ["allocation.policy=manual", "allocation.default.wq=int4"]
    said.append("export.format=compressed-tensors")
    assert QuantizeConfig(recipe="best").run_config() == load_config(None, said, "best")
    config = QuantizeConfig(recipe="best", rotation="none", quantization={"tune": "none"})
    found = config.run_config()
    assert (found.rotation.kind, found.quantization.tune) == ("none", "none")
    assert (found.quantization.correction, found.calibration.generated) == ("stream", 0.5)
    assert QuantizeConfig(rotation="hadamard").run_config().rotation.kind == "hadamard"


def test_the_head_is_quantized_on_request() -> None:
    assert "lm_head" not in plan(QuantizeConfig()).schemes
    assert str(plan(QuantizeConfig(bits=8, lm_head=True)).schemes["lm_head"]) == "int8-g128"


def test_activation_order_leaves_groups_where_they_are() -> None:
    found = QuantizeConfig(desc_act=True).run_config().quantization
    assert found.act_order
    assert found.static_groups


def test_the_first_row_that_matches_counts() -> None:
    rows: dict[str, dict[str, Any]] = {
        rf"+:.*experts\.{EXPERT_INDEX_PLACEHOLDER}\.down_proj": {"bits": 8, "group_size": 32},
        r".*layers\.0\.mlp\.experts\.": {"format": "mxfp4"},
        r"-:.*self_attn\.o_proj": {},
        r"+:.*self_attn": {"sym": False},
    }
    schemes = plan(QuantizeConfig(group_size=64, dynamic=rows)).schemes
    found = {
        name: str(schemes[f"model.layers.{name}"])
        for name in (
            "0.mlp.experts.1.down_proj",
            "0.mlp.experts.1.up_proj",
            "1.mlp.experts.1.up_proj",
            "0.self_attn.o_proj",
            "0.self_attn.q_proj",
        )
    }
    assert list(found.values()) == ["int8-g32", "mxfp4", "int4-g64", "bf16", "int4-g64-asym"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 5}, r"QuantizeConfig\.bits: 5 is not allowed; allowed: 2, 3, 4, 6, 8"),
        ({"group_size": 0}, "config key 'group_size': 0 is not a group size"),
        ({"damp_percent": 2.0}, "config key 'damp_percent'"),
        ({"damp_auto_increment": 0}, r"damp_auto_increment: 0 is not allowed; allowed: a positive"),
        ({"pack_dtype": "int16"}, r"pack_dtype: 'int16' is not allowed; allowed: int32"),
        ({"dynamic": {"x": {"bitz": 4}}}, r"unknown key 'bitz' in dynamic\['x'\]; nearest: bits"),
        ({"dynamic": {"x": {"bits": 16}}}, r"dynamic\['x'\]\.bits: 16 is not allowed"),
        (
            {"dynamic": {"x": {"bits": 8, "format": "int4"}}},
            r"dynamic\['x'\]\.bits: 8 is not allowed; allowed: 4, as format int4",
        ),
        ({"dynamic": {"x": {"bits": 4, "format": "int44"}}}, r"dynamic\['x'\]\.format: .*int44"),
        ({"dynamic": {"-:x": {"bits": 4}}}, r"dynamic\['-:x'\].*keeps its linears"),
        ({"dynamic": {"x": 4}}, r"dynamic\['x'\]: 4 is not allowed; allowed: a mapping"),
        (
            {"quantization": {"tunes": 1}},
            r"unknown config key 'quantization\.tunes'; nearest: tune",
        ),
        ({"quantization": {"tune": "model"}}, r"quantization\['tune'\]: 'model' is not allowed"),
        ({"formats": ["int4"]}, r"formats: \['int4'\] is not allowed; allowed: with target_bits"),
        ({"target_bits": 20}, "config key 'target_bits'"),
        ({"quantization": {"damping": 1}}, r"quantization\['damping'\].*left to its own key"),
    ],
)
def test_a_wrong_key_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizeConfig(**settings)


def test_a_budget_is_that_of_a_run() -> None:
    found = QuantizeConfig(target_bits=3.5, dynamic={"-:.*q_proj": {}}).run_config().allocation
    assert (found.policy, found.target_bits) == ("budget", 3.5)
    assert set(found.formats) == {
        *("int2", "int3", "int4", "int6", "int8", "mxfp4", "mxfp6", "mxfp8", "bf16")
    }
    chosen = QuantizeConfig(target_bits=3.5, formats=["int3", "int8"]).run_config().allocation
    assert chosen.formats == ("int3", "int8")


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError, match="damp_percnt"):
        QuantizeConfig(damp_percnt=0.1)  # type: ignore[call-arg]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"matches no linear; nearest names: model.layers.0"):
        plan(QuantizeConfig(dynamic={r"+:model\.layer\.0": {"bits": 8}}))
