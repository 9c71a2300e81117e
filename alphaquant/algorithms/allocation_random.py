"""Random plans of a given size: what a policy has to beat before it can claim to have found anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alphaquant.algorithms.allocation_budget import check_reachable, free_budget
from alphaquant.algorithms.allocation_groups import group_costs, group_linears, menu
from alphaquant.algorithms.allocation_rules import finish_plan, resolve_rules
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ATTEMPTS = 1000


def random_plan(
    specs: Sequence[LinearSpec],
    config: AllocationConfig,
    quantization: QuantizationConfig,
    seed: int,
    tolerance: float = 0.005,
) -> QuantPlan:
    """A plan with the fixed linears, menu and groups of policy budget, and formats drawn at random.

    Its bits per weight lie within `tolerance` under `target_bits`. Raises PlanError when the groups
    are too coarse to land there.
    """
    rules = resolve_rules(specs, config, quantization)
    groups = group_linears(rules.free, config.granularity or "fused")
    options = menu(config, quantization)
    costs = group_costs(groups, options)
    check_reachable(rules, options, int(costs.min(axis=1).sum()), config.target_bits)
    most = free_budget(rules, config.target_bits)
    least = most - int(tolerance * sum(spec.size for spec in rules.specs))
    picks = _draw(costs, least, most, np.random.default_rng(seed))
    if picks is None:
        raise PlanError(
            f"no random plan of {len(groups)} groups stores between {config.target_bits - tolerance:g} "
            f"and {config.target_bits:g} bits per weight; use a finer granularity, more formats or a "
            "larger tolerance"
        )
    chosen = {
        spec.name: options[pick]
        for group, pick in zip(groups, picks, strict=True)
        for spec in group.specs
    }
    return finish_plan(rules, chosen, config)


def _draw(costs: Ints, least: int, most: int, random: np.random.Generator) -> Ints | None:
    """Options per group with a total cost in `[least, most]`, or None after ATTEMPTS draws."""
    chances = _chances(costs, (least + most) / 2)
    for _ in range(ATTEMPTS):
        below = chances.cumsum(axis=1) < random.random((len(costs), 1))
        picks: Ints = np.minimum(below.sum(axis=1), costs.shape[1] - 1)
        if _nudge(picks, costs, least, most, random):
            return picks
    return None


def _chances(costs: Ints, mean: float) -> Floats:
    """The most even chances of each option `[groups, options]` whose expected total is `mean`."""
    unit = costs / costs.mean()
    low, high = -1e3, 1e3
    for _ in range(80):
        tilt = (low + high) / 2
        chances = _softmax(-tilt * unit)
        low, high = (tilt, high) if (chances * costs).sum() > mean else (low, tilt)
    return _softmax(-high * unit)


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _nudge(picks: Ints, costs: Ints, least: int, most: int, random: np.random.Generator) -> bool:
    """Make random changes, each closer to the range, until the total is in it or none is closer."""
    index = np.arange(len(picks))
    while True:
        total = int(costs[index, picks].sum())
        if least <= total <= most:
            return True
        after = total + costs - costs[index, picks][:, None]
        landing = np.argwhere((least <= after) & (after <= most))
        middle = (least + most) / 2
        closer = landing if len(landing) else np.argwhere(abs(after - middle) < abs(total - middle))
        if not len(closer):
            return False
        group, option = closer[random.integers(len(closer))]
        picks[group] = option
