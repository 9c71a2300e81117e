"""Ways to spend bits, each a row, and the plans that they make: those of the experiment's arms where it has one.

Every plan is made under the same rules: a format per linear, the default menu, stored bits within the budget.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from alphaquant.algorithms.arm_plans import arm_plans
from alphaquant.algorithms.arm_table import ArmPlan, ArmTable, Knowledge
from alphaquant.algorithms.arms import ArmName
from alphaquant.config.recipes import assignments_of
from alphaquant.plan import QuantPlan
from benchmarks.rivals.catalogue import ORDERED, OWN, Contestant

RecipeName: TypeAlias = Literal["GPTQ", "balanced"]
BITS = (2.5, 3.0, 3.5, 4.25)
RECIPES: dict[RecipeName, dict[str, str]] = {
    "GPTQ": ORDERED,
    "balanced": ORDERED | assignments_of("balanced"),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to spend bits."""

    name: str
    words: str
    arm: ArmName | None
    """The experiment's arm; None for the ratio rule, which has no budget of its own."""


POLICIES = (
    Policy("budget", "policy `budget`: least predicted loss", "fisher"),
    Policy(
        "alphaq",
        "policy `alpha` with AlphaQ's rule: FARMS, low alpha first, 4^-bits, the strength of least predicted loss",
        "alphaq",
    ),
    Policy(
        "alpha",
        "policy `alpha` with its own rule: high alpha first, estimator and strength of least predicted loss",
        "high",
    ),
    Policy(
        "ratio",
        "the ratio rule in these bits: two formats, the dearer one for a share of the linears, high alpha first",
        None,
    ),
    Policy("uniform", "the same two formats, spread evenly over the model", "uniform"),
    Policy("random", "formats drawn at random for every linear", "random"),
)


def plans_of(policy: Policy, known: Knowledge, draws: int) -> list[ArmPlan]:
    """The policy's plans within `known.allocation.target_bits`: `draws` where chance has a part, else one."""
    if policy.arm is not None:
        return arm_plans(policy.arm, known, draws if policy.name == "random" else 1, seed=0)
    table = ArmTable(known)
    guide = table.guide("hill")
    mean = [
        sum(guide[spec.name] * spec.size for spec in group.specs) / group.size
        for group in table.groups
    ]
    order = sorted(range(len(mean)), key=lambda place: -mean[place])
    return [table.told(table.raised(order), "hill")]


def contestant_of(
    policy: Policy, recipe: RecipeName, bits: float, draw: int, plan: QuantPlan
) -> Contestant:
    """A plan as a cell of ours: every linear's format by name."""
    options = RECIPES[recipe] | {
        "allocation.policy": "manual",
        "allocation.overrides": json.dumps(overrides(plan)),
    }
    setting = f"{policy.name}-{bits:g}-{recipe}-{draw}"
    return Contestant(OWN, setting, policy.words, options)


def overrides(plan: QuantPlan) -> list[dict[str, object]]:
    """`allocation.overrides` that make the plan: a rule per format."""
    names: dict[str, list[str]] = {}
    for name, scheme in plan.schemes.items():
        names.setdefault(str(scheme), []).append(re.escape(name))
    return [_rule(f"re:({'|'.join(found)})$", scheme) for scheme, found in sorted(names.items())]


def _rule(pattern: str, scheme: str) -> dict[str, object]:
    return {"pattern": pattern, **({"skip": True} if scheme == "bf16" else {"wq": scheme})}
