from __future__ import annotations

from typing import Any

import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_random import random_plan
from alphaquant.config import AllocationConfig, Override, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from tests.specs import moe_specs, sensitivity_frame

SPECS = moe_specs(blocks=4, experts=6)
QUANTIZATION = QuantizationConfig()


@pytest.mark.parametrize("granularity", ["linear", "expert", "fused"])
@pytest.mark.parametrize("bits", [3.0, 4.25, 9.0])
def test_random_plans_store_just_the_asked_bits(granularity: Any, bits: float) -> None:
    config = AllocationConfig(granularity=granularity, target_bits=bits)
    for seed in range(5):
        plan = random_plan(SPECS, config, QUANTIZATION, seed)
        assert bits - 0.005 - 1e-9 <= plan.bits_per_weight <= bits + 1e-9


def test_seeds_repeat_and_differ() -> None:
    config = AllocationConfig()
    first, again, other = (random_plan(SPECS, config, QUANTIZATION, seed) for seed in (0, 0, 1))
    assert first.schemes == again.schemes
    assert first.schemes != other.schemes


def test_fixed_linears_groups_and_menu_are_those_of_the_budget() -> None:
    config = AllocationConfig(
        formats=("int3", "int4", "int6"), overrides=(Override(pattern="*.o_proj", wq="fp8"),)
    )
    plan = random_plan(SPECS, config, QUANTIZATION, 0, tolerance=0.1)
    for spec in plan.specs:
        scheme = str(plan.schemes[spec.name])
        if spec.role == "router":
            assert scheme == "bf16"
        elif spec.role == "o":
            assert scheme == "fp8-g128"
        else:
            assert scheme in {"int3-g128", "int4-g128", "int6-g128"}
    experts = {plan.schemes[s.name] for s in plan.specs if s.expert is not None and s.block == 0}
    assert len(experts) == 1


def test_the_budget_policy_predicts_less_loss_than_twenty_random_plans() -> None:
    config = AllocationConfig(target_bits=4.25)
    sensitivity = sensitivity_frame(SPECS, config)
    losses = sensitivity.set_index(["linear", "format"])["predicted_loss"].to_dict()
    best = allocate(SPECS, config, QUANTIZATION, None, sensitivity)
    plans = [best, *(random_plan(SPECS, config, QUANTIZATION, seed) for seed in range(20))]
    predicted = [
        sum(losses[name, str(s)] for name, s in plan.schemes.items() if s != Scheme.parse("bf16"))
        for plan in plans
    ]
    assert predicted[0] < min(predicted[1:])


def test_a_budget_that_no_plan_meets_is_an_error() -> None:
    with pytest.raises(PlanError, match="smallest plan stores"):
        random_plan(SPECS, AllocationConfig(target_bits=2.0), QUANTIZATION, 0)
    coarse = AllocationConfig(target_bits=6.0, formats=("int3", "int4"))
    with pytest.raises(
        PlanError, match=r"no random plan of 12 groups stores between 5\.995 and 6 b"
    ):
        random_plan(SPECS, coarse, QUANTIZATION, 0)
