"""Arms differ in what they know and in nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from alphaquant.algorithms.arm_plans import arm_plans
from alphaquant.algorithms.arm_table import ArmTable, Knowledge
from alphaquant.algorithms.arms import ARM_NAMES, ARMS, ArmName, draws_of
from alphaquant.algorithms.plan_tables import plans_table, read_plans
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.plan import QuantPlan
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = moe_specs(4, 6)
CONFIG = AllocationConfig(formats=("int2", "int3", "int4", "int6", "int8"), target_bits=5.0)


def known(seed: int = 0, config: AllocationConfig = CONFIG) -> Knowledge:
    random = np.random.default_rng(seed)
    hill = alpha_frame(SPECS, seed).assign(kurtosis=random.uniform(3, 6, len(SPECS)))
    losses = sensitivity_frame(SPECS, config, seed)
    losses = losses.assign(
        output_change=losses["predicted_loss"] * random.lognormal(0, 0.5, len(losses)),
        stderr=0.2 * losses["predicted_loss"],
    )
    names = [spec.name for spec in SPECS]
    oracle = pd.DataFrame({"linear": names, "factor": random.lognormal(0, 1, len(names))})
    farms = hill.assign(alpha=random.uniform(4, 7, len(SPECS)))
    gammas = (3.0, 5.0, 10.0)
    return Knowledge(SPECS, config, QuantizationConfig(), hill, farms, losses, oracle, gammas)


def plans_of(name: ArmName, draws: int = 1, seed: int = 0) -> list[QuantPlan]:
    return [one.plan for one in arm_plans(name, known(), draws, seed)]


@pytest.mark.parametrize("name", ARM_NAMES)
def test_every_arm_spends_the_same_bits_under_the_same_rules(name: ArmName) -> None:
    for plan in plans_of(name, 3):
        assert 4.97 < plan.bits_per_weight <= 5.0
        kept = [spec.name for spec in plan.specs if spec.role == "router"]
        assert {str(plan.schemes[name]) for name in kept} == {"bf16"}


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.drawn])
def test_drawn_arms_differ_from_draw_to_draw_and_not_from_call_to_call(name: ArmName) -> None:
    plans = plans_of(name, 3)
    assert len({str(plan.schemes) for plan in plans}) == 3
    assert [plan.schemes for plan in plans_of(name, 3)] == [plan.schemes for plan in plans]
    assert plans_of(name, 1, seed=1)[0].schemes != plans[0].schemes


@pytest.mark.parametrize("name", ["low", "high", "local_alpha", "fisher", "uniform", "types"])
def test_other_arms_have_one_plan(name: ArmName) -> None:
    assert len(plans_of(name, 5)) == 1


@pytest.mark.parametrize("direction", ["low", "high"])
def test_shuffling_keeps_how_often_each_format_stands_in_a_type_and_block(direction: str) -> None:
    [plan] = plans_of(direction)  # type: ignore[arg-type]
    [other] = plans_of(f"{direction}_shuffled")  # type: ignore[arg-type]
    assert other.bits_per_weight == plan.bits_per_weight
    for block in range(4):
        for role in ("gate", "up", "down"):
            cell = [s.name for s in plan.specs if (s.block, s.role) == (block, role)]
            counts = [Counter(str(p.schemes[name]) for name in cell) for p in (plan, other)]
            assert counts[0] == counts[1]
    # one q a block: they exchange over blocks
    names = [spec.name for spec in plan.specs if spec.role == "q"]
    assert Counter(plan.schemes[n] for n in names) == Counter(other.schemes[n] for n in names)


def test_permuting_keeps_the_alphas_of_a_type_and_moves_them_between_its_linears() -> None:
    table = ArmTable(known())
    guide = table.guide("hill")
    permuted = table.permuted(guide, np.random.default_rng(0))
    roles = pd.Series({spec.name: spec.role for spec in table.free})
    for role in set(roles):
        names = roles.index[roles == role]
        assert sorted(guide[names]) == sorted(permuted[names])
    assert (guide != permuted).mean() > 0.8


def test_the_two_directions_pull_bits_to_opposite_ends_of_alpha() -> None:
    table = ArmTable(known())
    guide = table.guide("farms")
    for gamma, sign in ((6.0, 1), (-6.0, -1)):
        plan = table.guided(guide, gamma)
        bits = pd.Series({spec.name: plan.bits_of(spec) for spec in table.free})
        assert sign * guide.rank().corr(bits.rank()) > 0.5


def test_a_variant_is_chosen_by_predicted_loss() -> None:
    [low] = arm_plans("low", known(), 1, 0)
    assert len(low.tried) == 9  # three guides, three strengths
    assert low.predicted == min(low.tried.values()) == low.tried[low.variant]
    [both] = arm_plans("local_alpha", known(), 1, 0)
    assert len(both.tried) == 18
    [fisher] = arm_plans("fisher", known(), 1, 0)
    assert fisher.predicted is not None
    assert fisher.predicted < low.predicted


def test_variance_alone_knows_no_alpha() -> None:
    other = known()
    other.hill["alpha"] = 3.0
    assert arm_plans("variance", other, 1, 0)[0].plan.schemes == plans_of("variance")[0].schemes


def test_uniform_takes_the_two_formats_next_to_the_budget_and_spreads_them() -> None:
    [plan] = plans_of("uniform")
    free = [spec for spec in plan.specs if spec.role != "router"]
    assert {plan.schemes[spec.name].format for spec in free} == {"int4", "int6"}
    raised = [
        sum(plan.schemes[s.name].format == "int6" for s in free if s.block == b) for b in range(4)
    ]
    assert max(raised) - min(raised) <= 3


def test_by_type_raises_values_before_queries() -> None:
    [plan] = plans_of("types")
    formats = {
        role: {plan.schemes[s.name].format for s in plan.specs if s.role == role}
        for role in ("v", "q")
    }
    assert formats == {"v": {"int6"}, "q": {"int4"}}


def test_the_oracle_spends_by_what_it_measured() -> None:
    even = known()
    assert even.oracle is not None
    even.oracle["factor"] = 1.0
    assert arm_plans("oracle", even, 1, 0)[0].plan.schemes == plans_of("fisher")[0].schemes
    assert plans_of("oracle")[0].schemes != plans_of("fisher")[0].schemes
    blind = Knowledge(SPECS, CONFIG, QuantizationConfig(), even.hill, even.farms, even.sensitivity)
    with pytest.raises(PlanError, match="stage oracle"):
        arm_plans("oracle", blind, 1, 0)


def test_no_format_under_the_budget_is_explained() -> None:
    tight = CONFIG.model_copy(update={"formats": ("int4", "int8"), "target_bits": 4.2})
    with pytest.raises(PlanError, match="add a smaller one"):
        arm_plans("uniform", known(config=tight), 1, 0)


def test_draws_are_spread_over_the_seeds() -> None:
    random, fisher = ARMS["random"], ARMS["fisher"]
    assert [draws_of(random, 20, 3, seed) for seed in range(3)] == [6, 7, 7]
    assert [draws_of(random, 1, 3, seed) for seed in range(3)] == [1, 1, 1]
    assert [draws_of(fisher, 20, 3, seed) for seed in range(3)] == [1, 1, 1]


def test_plans_come_back_from_their_table() -> None:
    plans = plans_of("random", 2)
    again = read_plans(plans_table(plans), SPECS)
    assert [plan.schemes for plan in again] == [plan.schemes for plan in plans]
