from __future__ import annotations

import time
from typing import Any

import pytest

from alphaquant.algorithms.allocation_rules import resolve_rules
from alphaquant.config import AllocationConfig, Override, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.progress import reporting_to
from tests.notes import NotesOnly
from tests.specs import moe_specs

SPECS = moe_specs()
TIED = [spec for spec in SPECS if spec.role != "lm_head"]
ROOT = "model.layers.0"


def fixed(*overrides: dict[str, Any], **settings: Any) -> dict[str, Scheme]:
    config = AllocationConfig(overrides=overrides, **settings)
    return resolve_rules(SPECS, config, QuantizationConfig()).fixed


def pinned(*overrides: dict[str, Any], **settings: Any) -> dict[str, str]:
    found = fixed(*overrides, skip_router=False, **settings)
    return {name: str(scheme) for name, scheme in found.items()}


def test_a_glob_covers_whole_names_and_is_case_sensitive() -> None:
    names = pinned({"pattern": "*.experts.1.*", "wq": "int4"})
    assert len(names) == 6
    assert all(".experts.1." in name for name in names)
    with pytest.raises(PlanError, match="matches no linear"):
        pinned({"pattern": "experts.1", "wq": "int4"})
    with pytest.raises(PlanError, match="matches no linear"):
        pinned({"pattern": "*.EXPERTS.1.*", "wq": "int4"})


def test_a_regular_expression_matches_from_the_start_of_the_name() -> None:
    names = pinned({"pattern": r"re:model\.layers\.\d+\.self_attn\.[qk]_", "wq": "int4"})
    assert len(names) == 4
    with pytest.raises(PlanError, match="matches no linear"):
        pinned({"pattern": "re:self_attn", "wq": "int4"})


def test_the_last_match_wins() -> None:
    names = pinned(
        {"pattern": "*", "wq": "int8"},
        {"pattern": "*.down_proj", "wq": "int3"},
        {"pattern": f"{ROOT}.*", "skip": True},
    )
    assert names[f"{ROOT}.mlp.experts.0.down_proj"] == "bf16"
    assert names["model.layers.1.mlp.experts.0.down_proj"] == "int3-g128"
    assert names["model.layers.1.mlp.experts.0.up_proj"] == "int8-g128"


def test_a_plan_that_names_every_linear_is_read_at_once() -> None:
    specs = [spec for spec in moe_specs(blocks=16, experts=64) if spec.role != "lm_head"]
    overrides = tuple(Override(pattern=spec.name, wq="int4") for spec in specs)
    began = time.process_time()
    rules = resolve_rules(specs, AllocationConfig(overrides=overrides), QuantizationConfig())
    assert time.process_time() - began < 1  # each beside each would be ten million comparisons
    assert set(map(str, rules.fixed.values())) == {"int4-g128"}


def test_an_override_without_a_weight_format_leaves_the_weight_to_others() -> None:
    config = AllocationConfig(
        overrides=(
            Override(pattern="*.q_proj", wq="int8"),
            Override(pattern="*_proj", aq="fp8"),
        )
    )
    rules = resolve_rules(SPECS, config, QuantizationConfig())
    assert rules.fixed[f"{ROOT}.self_attn.q_proj"] == Scheme.parse("int8")
    assert f"{ROOT}.self_attn.k_proj" not in rules.fixed
    assert rules.activations[f"{ROOT}.self_attn.k_proj"] == "fp8"


def test_activations_of_one_kernel_agree_where_formats_do() -> None:
    apart = (Override(pattern="*.q_proj", aq="int8"),)
    with pytest.raises(PlanError, match=r"q_proj and .*k_proj are one kernel.*aq int8 and aq bf16"):
        resolve_rules(SPECS, AllocationConfig(overrides=apart), QuantizationConfig())
    linear = AllocationConfig(overrides=apart, granularity="linear")
    assert len(resolve_rules(SPECS, linear, QuantizationConfig()).activations) == 2
    # a kept linear is no part of the kernel
    kept = (*apart, *(Override(pattern=f"*.{name}_proj", skip=True) for name in "kv"))
    resolve_rules(SPECS, AllocationConfig(overrides=kept), QuantizationConfig())


def test_an_override_beats_kept_routers_and_attention() -> None:
    schemes = fixed(
        {"pattern": "*.mlp.gate", "wq": "int8"},
        {"pattern": "*.v_proj", "wq": "int4"},
        policy="ratio",
    )
    assert str(schemes[f"{ROOT}.mlp.gate"]) == "int8-g128"
    assert str(schemes[f"{ROOT}.self_attn.v_proj"]) == "int4-g128"
    assert str(schemes[f"{ROOT}.self_attn.q_proj"]) == "bf16"


def test_group_size_comes_from_the_override_then_the_default_then_quantization() -> None:
    default = {"wq": "int4", "group_size": 32}
    overrides = (
        {"pattern": "*.q_proj", "wq": "int3", "group_size": 16},
        {"pattern": "*.k_proj", "wq": "int3"},
        {"pattern": "*.v_proj", "wq": "int3", "group_size": -1},
        {"pattern": "*.o_proj", "group_size": 64},
    )
    names = pinned(*overrides, policy="manual", default=default)
    assert [names[f"{ROOT}.self_attn.{role}_proj"] for role in "qkvo"] == [
        "int3-g16",
        "int3-g32",
        "int3-perchannel",
        "int4-g64",
    ]
    assert pinned(overrides[1])[f"{ROOT}.self_attn.k_proj"] == "int3-g128"


def test_a_group_size_alone_needs_a_default_format() -> None:
    with pytest.raises(PlanError, match="group_size but no wq, and policy budget"):
        pinned({"pattern": "*", "group_size": 64})


def test_an_override_that_says_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="says nothing; give it wq, aq, group_size or skip"):
        pinned({"pattern": "*"})


def test_a_pattern_that_matches_nothing_lists_the_nearest_names() -> None:
    with pytest.raises(PlanError, match=r"nearest names: .*model\.layers\.0\.self_attn\.q_proj"):
        pinned({"pattern": "model.layers.0.self_attn.qproj", "wq": "int4"})


@pytest.mark.parametrize("pattern", ["*q_prj", "*.self_attn.q_prj", r"re:.*\.q_prj$"])
def test_globs_are_compared_with_the_last_parts_of_names(pattern: str) -> None:
    with pytest.raises(PlanError, match=r"nearest names: model\.layers\.0\.self_attn\.q_proj, "):
        pinned({"pattern": pattern, "wq": "int4"})


def test_a_broken_regular_expression_is_an_error_that_quotes_it() -> None:
    with pytest.raises(PlanError, match=r"'re:\(' is not a regular expression"):
        pinned({"pattern": "re:(", "wq": "int4"})


def head_of(*overrides: dict[str, Any], **settings: Any) -> str | None:
    config = AllocationConfig(overrides=overrides, **settings)
    found = resolve_rules(SPECS, config, QuantizationConfig(group_size=64)).head
    return None if found is None else str(found[1])


def test_the_head_has_a_setting_of_its_own() -> None:
    assert head_of() is None
    assert head_of(lm_head="bf16") is None
    assert head_of(lm_head="int8") == "int8-g64"
    assert head_of(lm_head="mxfp8", target_bits=2.0) == "mxfp8"
    rules = resolve_rules(SPECS, AllocationConfig(lm_head="int8"), QuantizationConfig())
    assert "lm_head" not in {spec.name for spec in rules.specs} | set(rules.fixed)


@pytest.mark.parametrize("pattern", ["lm_head", "lm_*", "re:lm_head"])
def test_an_override_that_names_the_head_alone_decides_it(pattern: str) -> None:
    assert head_of({"pattern": pattern, "wq": "int4", "group_size": 32}) == "int4-g32"
    assert head_of({"pattern": pattern, "wq": "int4"}, lm_head="int8") == "int4-g64"
    assert head_of({"pattern": pattern, "skip": True}, lm_head="int8") is None
    assert head_of({"pattern": pattern, "aq": "fp8"}, lm_head="int8") == "int8-g64"


def test_activations_of_a_kept_head_are_refused() -> None:
    with pytest.raises(PlanError, match=r"activations of lm_head.*set allocation\.lm_head"):
        head_of({"pattern": "lm_head", "aq": "fp8"})


def test_a_head_that_is_not_among_the_linears_cannot_be_quantized() -> None:
    with pytest.raises(ValueError, match="not among the linears"):
        resolve_rules(TIED, AllocationConfig(lm_head="int8"), QuantizationConfig())


@pytest.mark.parametrize("specs", [SPECS, TIED], ids=["own head", "tied head"])
@pytest.mark.parametrize("setting", [{"skip": True}, {"wq": "bf16"}])
def test_a_kept_lm_head_may_be_spelled_out(specs: Any, setting: dict[str, Any]) -> None:
    config = AllocationConfig(overrides=({"pattern": "lm_head", **setting},))  # type: ignore[arg-type]
    rules = resolve_rules(specs, config, QuantizationConfig())
    assert "lm_head" not in {spec.name for spec in rules.specs}
    assert "lm_head" not in rules.fixed


def test_a_wide_pattern_leaves_lm_head_alone_and_says_so() -> None:
    notes = NotesOnly()
    with reporting_to(notes):
        names = pinned({"pattern": "*", "wq": "int4"})
    assert "lm_head" not in names
    assert notes.said == ["override '*' also matches lm_head, whose format allocation.lm_head says"]


def test_a_group_size_that_the_format_fixes_otherwise_is_ignored_with_a_note() -> None:
    notes = NotesOnly()
    with reporting_to(notes):
        names = pinned({"pattern": "*.q_proj", "wq": "mxfp4", "group_size": 64})
    assert names[f"{ROOT}.self_attn.q_proj"] == "mxfp4"
    assert "mxfp4 has 32 weights per scale" in notes.said[0]


def test_free_linears_are_those_that_nothing_fixes() -> None:
    config = AllocationConfig(overrides=(Override(pattern="*.experts.*", wq="int4"),))
    free = resolve_rules(SPECS, config, QuantizationConfig()).free
    assert {spec.role for spec in free} == {"q", "k", "v", "o"}


def test_a_plan_that_names_every_linear_of_a_large_mixture_is_read_at_once() -> None:
    specs = moe_specs(blocks=20, experts=64)
    rules = tuple({"pattern": spec.name, "wq": "int4"} for spec in specs if spec.expert is not None)
    config = AllocationConfig(overrides=rules)  # type: ignore[arg-type]
    started = time.process_time()
    found = resolve_rules(specs, config, QuantizationConfig()).fixed
    assert (
        time.process_time() - started < 2
    )  # 4,000 patterns held against 4,000 names take 5 seconds
    assert len([scheme for scheme in found.values() if scheme.format == "int4"]) == len(rules)


def test_a_name_without_wild_cards_is_that_linear_alone() -> None:
    assert pinned({"pattern": f"{ROOT}.self_attn.q_proj", "wq": "int4"}) == {
        f"{ROOT}.self_attn.q_proj": "int4-g128"
    }
    with pytest.raises(PlanError, match="nearest names: model"):
        pinned({"pattern": f"{ROOT}.self_attn.q", "wq": "int4"})
