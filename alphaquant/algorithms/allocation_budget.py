"""Budget: give every group the option that keeps the summed loss least within the stored bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alphaquant.algorithms.allocation_groups import BF16, Group, group_costs, stored_bits
from alphaquant.algorithms.allocation_rules import Rules
from alphaquant.algorithms.knapsack import solve
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.progress import reporter

if TYPE_CHECKING:
    import pandas as pd


def spend(
    rules: Rules,
    groups: Sequence[Group],
    options: Sequence[Scheme],
    losses: pd.DataFrame,
    target_bits: float,
) -> dict[str, Scheme]:
    """Schemes of the free linears; `losses` holds a row per linear and a column per option.

    Stored bits of the whole plan, fixed linears included, stay at or under `target_bits` per weight.
    Raises PlanError naming the smallest reachable bits when the budget is below them.
    """
    costs = group_costs(groups, options)
    budget = free_budget(rules, target_bits)
    check_reachable(rules, options, int(costs.min(axis=1).sum()), target_bits)
    rows = losses.to_numpy(dtype=np.float64)
    position = {name: row for row, name in enumerate(losses.index)}
    summed = np.array(
        [rows[[position[spec.name] for spec in group.specs]].sum(axis=0) for group in groups]
    ).reshape(costs.shape)
    best = solve(costs, summed, budget)
    spent = (fixed_bits(rules) + best.cost) / sum(spec.size for spec in rules.specs)
    reporter().note(
        f"allocation: {spent:.4f} bits per weight of at most {target_bits:g}, predicted loss "
        f"{best.loss:.4g}: {'the least' if best.exact else 'near the least'} for {len(groups)} groups "
        f"(fractional formats would save {best.gap:.2%})"
    )
    return {
        spec.name: options[pick]
        for group, pick in zip(groups, best.picks, strict=True)
        for spec in group.specs
    }


def fixed_bits(rules: Rules) -> int:
    """Stored bits of the kept and overridden linears."""
    return sum(stored_bits(s, rules.fixed[s.name]) for s in rules.specs if s.name in rules.fixed)


def free_budget(rules: Rules, target_bits: float) -> int:
    """Bits left for the free linears after the fixed ones; negative when these take too many."""
    return math.floor(target_bits * sum(spec.size for spec in rules.specs)) - fixed_bits(rules)


def check_reachable(
    rules: Rules, options: Sequence[Scheme], smallest: int, target_bits: float
) -> None:
    """Raise PlanError unless `smallest`, the cheapest bits of the free linears, fit the budget."""
    budget = free_budget(rules, target_bits)
    if smallest <= budget:
        return
    total = sum(spec.size for spec in rules.specs)
    least = math.ceil((target_bits + (smallest - budget) / total) * 1e4) / 1e4
    causes = []
    if free := rules.free:
        bits = smallest / sum(spec.size for spec in free)
        menu = ", ".join(str(option) for option in options)
        causes.append(f"the formats {menu} take at least {bits:.4g} bits")
    kept = [spec for spec in rules.specs if rules.fixed.get(spec.name) == BF16]
    if kept:
        share = sum(spec.size for spec in kept) / total
        causes.append(
            f"{len(kept)} linears kept bf16, such as {kept[0].name}, are {share:.1%} of the weights"
        )
    if len(kept) < len(rules.fixed):
        causes.append(f"overrides fix {len(rules.fixed) - len(kept)} linears")
    raise PlanError(
        f"allocation.target_bits {target_bits:g} cannot be met: the smallest plan stores {least:g} "
        f"bits per weight, scales included ({'; '.join(causes)}). Raise target_bits to {least:g}, add "
        "a smaller format to allocation.formats, or keep fewer linears (skip_router, skip_attention, "
        "overrides)"
    )
