from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_ratio import ratio_counts
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporting_to
from tests.notes import NotesOnly
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = moe_specs(blocks=2, experts=5)
EXPERTS = [spec.name for spec in SPECS if spec.expert is not None]
ALPHA = alpha_frame(SPECS)
BITS = {"mxfp4": 4, "mxfp8": 8, "bf16": 16}


def ratio_plan(
    alpha: pd.DataFrame = ALPHA, sensitivity: pd.DataFrame | None = None, **settings: Any
) -> QuantPlan:
    config = AllocationConfig(policy="ratio", **settings)
    return allocate(SPECS, config, QuantizationConfig(), alpha, sensitivity)


def expert_formats(plan: QuantPlan) -> dict[str, str]:
    return {name: plan.schemes[name].format for name in EXPERTS}


def alphas() -> pd.Series[float]:
    return ALPHA.set_index("linear")["alpha"][EXPERTS]


def test_shares_are_of_the_linears_that_are_not_kept() -> None:
    formats = Counter(expert_formats(ratio_plan(mxfp4_ratio=0.3, bf16_ratio=0.2)).values())
    assert formats == {"mxfp4": 9, "bf16": 6, "mxfp8": 15}


@pytest.mark.parametrize(("protect", "sign"), [("high_alpha", 1), ("low_alpha", -1)])
def test_bits_follow_alpha_in_the_direction_that_is_asked_for(protect: str, sign: int) -> None:
    plan = ratio_plan(mxfp4_ratio=0.3, bf16_ratio=0.2, protect=protect)
    ordered = (sign * alphas()).sort_values().index
    bits = [BITS[plan.schemes[name].format] for name in ordered]
    assert bits == sorted(bits)


def test_routers_and_attention_are_kept() -> None:
    plan = ratio_plan(bf16_ratio=0.0)
    kept = {s.name for s in plan.specs if plan.schemes[s.name].format == "bf16"}
    assert kept == {spec.name for spec in plan.specs} - set(EXPERTS)


@pytest.mark.parametrize("level", ["expert", "fused"])
def test_groups_are_ordered_by_their_size_weighted_mean_alpha(level: str) -> None:
    ratios = {"expert": (0.3, 0.2), "fused": (0.5, 0.0)}[level]
    plan = ratio_plan(granularity=level, mxfp4_ratio=ratios[0], bf16_ratio=ratios[1])
    rows = pd.DataFrame(
        {
            "group": s.fused_key if level == "fused" else f"{s.block}.{s.expert}",
            "size": s.size,
            "weighted": alphas()[s.name] * s.size,
            "bits": BITS[plan.schemes[s.name].format],
        }
        for s in SPECS
        if s.expert is not None
    )
    groups = rows.groupby("group")
    assert (groups["bits"].nunique() == 1).all()
    mean = (groups["weighted"].sum() / groups["size"].sum()).sort_values()
    bits = groups["bits"].first()[mean.index].tolist()
    assert bits == sorted(bits)
    assert len(set(bits)) > 1


def test_equal_alphas_keep_the_order_of_the_model() -> None:
    plan = ratio_plan(ALPHA.assign(alpha=3.0), mxfp4_ratio=0.5)
    formats = list(expert_formats(plan).values())
    assert formats == ["mxfp8"] * 15 + ["mxfp4"] * 15


def test_a_linear_without_alpha_is_taken_as_the_median() -> None:
    table = ALPHA.set_index("linear")
    table.loc[EXPERTS[0], "alpha"] = math.nan
    plan = ratio_plan(table.reset_index(), mxfp4_ratio=0.45, bf16_ratio=0.45)
    assert plan.schemes[EXPERTS[0]].format == "mxfp8"


@given(
    st.integers(0, 5000),
    st.floats(0, 1).flatmap(lambda high: st.tuples(st.just(high), st.floats(0, 1 - high))),
)
def test_counts_are_the_nearest_and_never_too_many(count: int, ratios: tuple[float, float]) -> None:
    high, low = ratio_counts(count, *ratios)
    assert abs(high - ratios[0] * count) <= 0.5 + 1e-6
    assert abs(low - ratios[1] * count) <= 1 + 1e-6
    assert high + low <= count


def test_ratios_that_sum_to_one_leave_nothing_in_the_middle() -> None:
    for count in range(40):
        assert sum(ratio_counts(count, 0.5, 0.5)) == count


def test_zero_and_one_are_none_and_all() -> None:
    assert set(expert_formats(ratio_plan(mxfp4_ratio=0.0)).values()) == {"mxfp8"}
    assert set(expert_formats(ratio_plan(mxfp4_ratio=1.0)).values()) == {"mxfp4"}
    everything = ratio_plan(mxfp4_ratio=0.0, bf16_ratio=1.0)
    assert set(expert_formats(everything).values()) == {"bf16"}


@pytest.mark.parametrize(("power", "twin"), [(3.0, "high_alpha"), (-3.0, "low_alpha")])
def test_measured_takes_the_direction_of_the_models_own_sensitivity(
    power: float, twin: str
) -> None:
    config = AllocationConfig()
    sensitivity = sensitivity_frame(SPECS, config)
    table = ALPHA.set_index("linear")["alpha"]
    sizes = {spec.name: spec.size for spec in SPECS}
    sensitivity["predicted_loss"] = [
        table[row.linear] ** power * sizes[row.linear] * 4.0**-row.bits_per_weight
        for row in sensitivity.itertuples()
    ]
    notes = NotesOnly()
    with reporting_to(notes):
        plan = ratio_plan(sensitivity=sensitivity, protect="measured")
    assert plan.schemes == ratio_plan(protect=twin).schemes
    (note,) = notes.said
    assert f"rank correlation {'+' if power > 0 else '-'}0.9" in note
    assert note.endswith(f"{twin.split('_')[0]} alpha is protected")


@pytest.mark.parametrize("same_alpha", [True, False])
def test_measured_without_an_answer_falls_back_to_high_alpha_and_says_so(same_alpha: bool) -> None:
    table = ALPHA.assign(alpha=3.0) if same_alpha else ALPHA
    sensitivity = sensitivity_frame(SPECS, AllocationConfig()) if same_alpha else None
    notes = NotesOnly()
    with reporting_to(notes):
        plan = ratio_plan(table, sensitivity, protect="measured")
    assert plan.schemes == ratio_plan(table, protect="high_alpha").schemes
    assert "high_alpha is used" in notes.said[0]
