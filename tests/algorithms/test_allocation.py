from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphaquant.algorithms.allocation import allocate
from alphaquant.config import AllocationConfig, Override, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporting_to
from tests.notes import NotesOnly
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = moe_specs()
DECODER = [spec for spec in SPECS if spec.role != "lm_head"]
QUANTIZATION = QuantizationConfig()
BF16 = Scheme.parse("bf16")


def plan_for(
    alpha: pd.DataFrame | None = None, sensitivity: pd.DataFrame | None = None, **settings: Any
) -> QuantPlan:
    config = AllocationConfig(**settings)
    alpha = alpha_frame(SPECS) if alpha is None else alpha
    sensitivity = sensitivity_frame(SPECS, config) if sensitivity is None else sensitivity
    return allocate(SPECS, config, QUANTIZATION, alpha, sensitivity)


def loss_of(plan: QuantPlan, sensitivity: pd.DataFrame) -> float:
    losses = sensitivity.set_index(["linear", "format"])["predicted_loss"]
    return sum(losses[name, str(s)] for name, s in plan.schemes.items() if s != BF16)


POLICIES = ["budget", "alpha", "ratio", "uniform", "manual"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_rows_in_the_order_of_the_model(
    policy: str, tmp_path: Path
) -> None:
    plan = plan_for(policy=policy)
    assert [spec.name for spec in plan.specs] == [spec.name for spec in DECODER]
    assert list(plan.schemes) == [spec.name for spec in DECODER]
    plan.save(tmp_path)
    assert QuantPlan.load(tmp_path, SPECS).schemes == plan.schemes


@pytest.mark.parametrize("policy", POLICIES)
def test_routers_stay_bf16_by_default_and_attention_only_under_ratio(policy: str) -> None:
    plan = plan_for(policy=policy)
    kept = {spec.role for spec in plan.specs if plan.schemes[spec.name] == BF16}
    assert "router" in kept
    assert ({"q", "k", "v", "o"} <= kept) == (policy == "ratio")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_skip_settings_decide_when_they_are_given(policy: str) -> None:
    plan = plan_for(policy=policy, skip_attention=True, skip_router=False, target_bits=9)
    attention = [spec.name for spec in DECODER if "self_attn" in spec.name]
    assert all(plan.schemes[name] == BF16 for name in attention)
    free = plan_for(policy="uniform", skip_attention=False, skip_router=False)
    assert BF16 not in free.schemes.values()


@given(
    bits=st.floats(2.7, 16),
    policy=st.sampled_from(["budget", "alpha"]),
    granularity=st.sampled_from(["linear", "expert", "fused", None]),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_the_budget_is_never_exceeded(
    bits: float, policy: Any, granularity: Any, seed: int
) -> None:
    config = AllocationConfig(policy=policy, granularity=granularity, target_bits=bits)
    plan = allocate(
        SPECS,
        config,
        QUANTIZATION,
        alpha_frame(SPECS, seed),
        sensitivity_frame(SPECS, config, seed),
    )
    stored = sum(
        plan.schemes[s.name].bits_per_weight(s.cols, rows=s.rows) * s.size for s in DECODER
    )
    assert stored <= bits * sum(s.size for s in DECODER) * (1 + 1e-12)
    assert plan.bits_per_weight <= bits + 1e-9


@pytest.mark.parametrize("policy", ["budget", "alpha"])
def test_the_budget_is_used(policy: str) -> None:
    assert plan_for(policy=policy, granularity="linear").bits_per_weight > 4.24


def test_a_larger_budget_never_predicts_a_larger_loss() -> None:
    sensitivity = sensitivity_frame(SPECS, AllocationConfig())
    losses = [
        loss_of(plan_for(sensitivity=sensitivity, target_bits=bits), sensitivity)
        for bits in (2.6, 3, 3.5, 4, 4.25, 5, 6, 8, 12, 16)
    ]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] == 0


def test_finer_granularity_never_predicts_a_larger_loss() -> None:
    sensitivity = sensitivity_frame(SPECS, AllocationConfig())
    losses = [
        loss_of(plan_for(sensitivity=sensitivity, granularity=level), sensitivity)
        for level in ("fused", "linear")
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("policy", ["budget", "alpha"])
def test_fused_is_the_default_and_shares_a_format_per_kernel(policy: str) -> None:
    plan = plan_for(policy=policy)
    assert plan.schemes == plan_for(policy=policy, granularity="fused").schemes
    by_kernel: dict[str, set[Scheme]] = {}
    for spec in DECODER:
        by_kernel.setdefault(spec.fused_key, set()).add(plan.schemes[spec.name])
    assert all(len(schemes) == 1 for schemes in by_kernel.values())


@pytest.mark.parametrize("policy", ["budget", "alpha", "ratio"])
def test_expert_granularity_shares_a_format_within_an_expert_and_not_across(policy: str) -> None:
    plan = plan_for(policy=policy, granularity="expert", gamma=4.0)
    by_expert: dict[tuple[Any, Any], set[Scheme]] = {}
    for spec in DECODER:
        if spec.expert is not None:
            by_expert.setdefault((spec.block, spec.expert), set()).add(plan.schemes[spec.name])
    assert all(len(schemes) == 1 for schemes in by_expert.values())
    assert len(set.union(*by_expert.values())) > 1


def test_the_same_input_gives_the_same_plan() -> None:
    assert plan_for(granularity="linear").schemes == plan_for(granularity="linear").schemes


@pytest.mark.parametrize("policy", ["budget", "alpha"])
def test_a_budget_below_the_smallest_plan_names_the_smallest_bits_and_the_causes(
    policy: str,
) -> None:
    with pytest.raises(PlanError) as raised:
        plan_for(policy=policy, target_bits=2.3, formats=("int3", "int4"))
    text = str(raised.value)
    assert "int3-g128, int4-g128" in text
    assert "2 linears kept bf16, such as model.layers.0.mlp.gate" in text
    least = float(text.split("stores ")[1].split(" bits")[0])
    plan_for(policy=policy, target_bits=least, formats=("int3", "int4"))
    with pytest.raises(PlanError):
        plan_for(policy=policy, target_bits=least - 2e-4, formats=("int3", "int4"))


def test_overrides_are_pinned_before_the_budget_is_spent() -> None:
    pinned = Override(pattern="*.o_proj", wq="int8")
    plan = plan_for(overrides=(pinned,), granularity="linear")
    outputs = [name for name in plan.schemes if name.endswith("o_proj")]
    assert all(plan.schemes[name] == Scheme.parse("int8") for name in outputs)
    assert 4.24 < plan.bits_per_weight <= 4.25
    with pytest.raises(PlanError, match="overrides fix 2 linears"):
        plan_for(overrides=(pinned,), target_bits=2.3)


def test_a_plan_whose_every_linear_is_pinned_needs_no_choice() -> None:
    everything = (Override(pattern="*", skip=True),)
    for policy in ("budget", "alpha", "ratio", "uniform"):
        plan = plan_for(policy=policy, overrides=everything, target_bits=16)
        assert set(plan.schemes.values()) == {BF16}
    with pytest.raises(PlanError, match="smallest plan stores 16 bits"):
        plan_for(overrides=everything)


def test_uniform_uses_the_default_scheme() -> None:
    plan = plan_for(policy="uniform", default={"wq": "int4", "group_size": 32})
    assert set(plan.schemes.values()) == {BF16, Scheme.parse("int4-g32")}


def test_group_size_and_symmetry_come_from_the_quantization_section() -> None:
    quantization = QuantizationConfig(group_size=-1, symmetric=False)
    config = AllocationConfig(policy="uniform", default={"wq": "int4"})  # type: ignore[arg-type]
    plan = allocate(SPECS, config, quantization)
    assert Scheme.parse("int4-perchannel-asym") in plan.schemes.values()


def test_activation_formats_go_to_quantized_linears_unless_an_override_says_otherwise() -> None:
    plan = plan_for(
        policy="manual",
        default={"wq": "int4", "aq": "mxfp8"},
        overrides=(
            Override(pattern="*.q_proj", aq="fp8"),
            Override(pattern="*.k_proj", aq="bf16"),
            Override(pattern="*.v_proj", skip=True),
            Override(pattern="*.o_proj", skip=True, aq="int8"),
        ),
    )
    root = "model.layers.0"
    assert plan.schemes[f"{root}.self_attn.q_proj"] == Scheme.parse("int4")
    found = {name: plan.activations.get(f"{root}.{name}") for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate", "mlp.experts.0.up_proj",
    )}  # fmt: skip
    assert found == {
        "self_attn.q_proj": "fp8",
        "self_attn.k_proj": None,
        "self_attn.v_proj": None,
        "self_attn.o_proj": "int8",
        "mlp.gate": None,
        "mlp.experts.0.up_proj": "mxfp8",
    }


@pytest.mark.parametrize(
    ("policy", "words"),
    [("budget", "needs the sensitivity table"), ("alpha", "needs the alpha table"),
     ("ratio", "needs the alpha table")],
)  # fmt: skip
def test_a_missing_table_is_named(policy: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        allocate(SPECS, AllocationConfig(policy=policy), QUANTIZATION)


def test_a_table_that_lacks_a_linear_or_a_format_is_an_error_that_says_which() -> None:
    with pytest.raises(PlanError, match=r"no row for model\.layers\.0\.self_attn\.q_proj"):
        plan_for(policy="alpha", alpha=alpha_frame(SPECS)[1:])
    short = sensitivity_frame(SPECS, AllocationConfig(formats=("int3", "int4")))
    with pytest.raises(
        PlanError, match=r"self_attn\.q_proj at int2-g128; it holds int3-g128, int4"
    ):
        plan_for(sensitivity=short)


def test_bf16_in_the_menu_needs_no_measured_loss() -> None:
    without = sensitivity_frame(SPECS, AllocationConfig(formats=("int3", "int4")))
    plan = plan_for(sensitivity=without, formats=("int3", "int4", "bf16"), target_bits=16)
    assert set(plan.schemes.values()) == {BF16}


def test_a_format_named_twice_counts_once() -> None:
    once = plan_for(formats=("int4", "int3"))
    twice = plan_for(formats=("int4", "int4-g128", "int3"), sensitivity=sensitivity_frame(
        SPECS, AllocationConfig(formats=("int4", "int3"))))  # fmt: skip
    assert twice.schemes == once.schemes


def test_the_result_is_reported_in_one_note() -> None:
    notes = NotesOnly()
    with reporting_to(notes):
        plan = plan_for()
    (note,) = notes.said
    assert f"{plan.bits_per_weight:.4f} bits per weight of at most 4.25" in note
    assert "the least for 6 groups" in note
