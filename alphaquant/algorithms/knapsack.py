"""Multiple-choice knapsack: one option per group, least total loss within a total cost.

Moves along each group's lower convex hull, taken in the order of loss saved per cost, solve the
linear relaxation; the first move that no longer fits gives a price per unit of cost and with it a
lower bound. Spending what is left gives a selection. An option whose reduced loss at that price
exceeds the gap between the two is in no better selection, which leaves a small core to search.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STATE_LIMIT = 100_000
"""Partial selections kept in the search of the core; beyond it the search is no longer exact."""
MAX_CUTS = 20
"""Groups that the search goes on for once it is no longer exact."""
NEGLIGIBLE = 1e-9
"""A share of the loss that is not worth a search."""


@dataclass(frozen=True, slots=True)
class Selection:
    """One option per group."""

    picks: list[int]
    loss: float
    cost: int
    bound: float
    """Loss of the linear relaxation, which no selection within the budget undercuts."""
    exact: bool
    """Whether this is proven to be the least loss."""

    @property
    def gap(self) -> float:
        """How far the loss is above the bound, as a share of the loss."""
        return (self.loss - self.bound) / self.loss if self.loss > 0 else 0.0


def solve(costs: Ints, losses: Floats, budget: int) -> Selection:
    """Least-loss options for costs and losses `[groups, options]` and a budget that can be met.

    Never above the budget; the least loss unless the core outgrows STATE_LIMIT, and then at most
    one move of one group above it.
    """
    base, price, bound = _relax(costs, losses, budget)
    picks = _fill(base, costs, losses, budget)
    start = _selection(picks, costs, losses, bound, exact=True)
    if start.gap <= NEGLIGIBLE:
        return start
    return _improve(start, base, costs, losses, budget, price)


def _relax(costs: Ints, losses: Floats, budget: int) -> tuple[Ints, float, float]:
    """Picks on the hulls, the price at which they stop, and the relaxation's loss."""
    hulls = [_hull(c, v) for c, v in zip(costs, losses, strict=True)]
    picks = np.array([hull[0] for hull in hulls], dtype=np.int64)
    index = np.arange(len(hulls))
    spare = budget - int(costs[index, picks].sum())
    moves = [
        ((losses[g, a] - losses[g, b]) / (costs[g, b] - costs[g, a]), g, b)
        for g, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    ]
    # Within a group the savings per cost fall, so that a stable sort keeps its moves in order.
    moves.sort(key=lambda move: -move[0])
    for saving, group, option in moves:
        step = int(costs[group, option] - costs[group, picks[group]])
        if step > spare:
            loss = float(losses[index, picks].sum())
            return picks, float(saving), loss - float(saving) * spare
        spare -= step
        picks[group] = option
    return picks, 0.0, float(losses[index, picks].sum())


def _hull(costs: Ints, losses: Floats) -> list[int]:
    """Options on the lower convex hull: rising cost, falling loss, falling savings per cost."""
    hull: list[int] = []
    for option in np.lexsort((losses, costs)).tolist():
        if hull and losses[option] >= losses[hull[-1]]:
            continue
        while len(hull) > 1 and _saving(costs, losses, hull[-2], hull[-1]) <= _saving(
            costs, losses, hull[-1], option
        ):
            hull.pop()
        hull.append(option)
    return hull


def _saving(costs: Ints, losses: Floats, cheap: int, dear: int) -> float:
    return float((losses[cheap] - losses[dear]) / (costs[dear] - costs[cheap]))


def _fill(base: Ints, costs: Ints, losses: Floats, budget: int) -> Ints:
    """Spend what is left on the single change that saves most loss, until none fits."""
    picks = base.copy()
    index = np.arange(len(picks))
    while len(picks):
        spare = budget - int(costs[index, picks].sum())
        saved = losses[index, picks][:, None] - losses
        saved[costs - costs[index, picks][:, None] > spare] = 0.0
        group, option = np.unravel_index(saved.argmax(), saved.shape)
        if saved[group, option] <= 0:
            break
        picks[group] = option
    return picks


def _improve(
    start: Selection, base: Ints, costs: Ints, losses: Floats, budget: int, price: float
) -> Selection:
    """Search the core exactly: all changes of `base` that could still end below `start`.

    Partial selections are kept as (cost, loss) changes relative to `base`, group by group, those
    most likely to change first. At `price` no change lowers a reduced loss, so that a partial
    selection whose reduced loss has used up the gap is dropped, and so is one that another beats in
    cost and loss (Pisinger, 1995).
    """
    index = np.arange(len(base))
    cost_change = costs - costs[index, base][:, None]
    loss_change = losses - losses[index, base][:, None]
    spare = budget - int(costs[index, base].sum())
    gap = start.loss - start.bound
    reduced = loss_change + price * cost_change
    reduced[index, base] = np.inf
    order = np.argsort(reduced.min(axis=1), kind="stable")
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[int, Ints, Ints]] = []
    best, cuts = None, 0
    for group in order.tolist():
        options = np.flatnonzero(reduced[group] < gap)
        if not len(options) or gap <= NEGLIGIBLE * start.loss or cuts > MAX_CUTS:
            break
        options = np.append(options, base[group])
        states = len(cost)
        cost = (cost + cost_change[group, options][:, None]).ravel()
        loss = (loss + loss_change[group, options][:, None]).ravel()
        keep = _undominated(cost, loss, loss + price * cost < gap)
        if len(keep) > STATE_LIMIT:
            cuts += 1
            keep = keep[np.argsort((loss + price * cost)[keep], kind="stable")[:STATE_LIMIT]]
        trail.append((group, keep % states, options[keep // states]))
        cost, loss = cost[keep], loss[keep]
        excess = np.where(cost <= spare, loss + price * spare, np.inf)
        if len(excess) and excess.min() < gap:
            gap, best = float(excess.min()), (len(trail), int(excess.argmin()))
    picks = np.array(start.picks) if best is None else _retrace(base, trail, *best)
    return _selection(picks, costs, losses, start.bound, exact=cuts == 0)


def _undominated(cost: Ints, loss: Floats, alive: npt.NDArray[np.bool_]) -> Ints:
    """Indices of living states that no cheaper or equally dear state matches in loss."""
    living = np.flatnonzero(alive)
    living = living[np.lexsort((loss[living], cost[living]))]
    least = np.minimum.accumulate(np.concatenate([[np.inf], loss[living]]))
    return living[loss[living] < least[:-1]]


def _retrace(base: Ints, trail: list[tuple[int, Ints, Ints]], depth: int, state: int) -> Ints:
    picks = base.copy()
    for group, parents, taken in reversed(trail[:depth]):
        picks[group], state = taken[state], parents[state]
    return picks


def _selection(picks: Ints, costs: Ints, losses: Floats, bound: float, exact: bool) -> Selection:
    index = np.arange(len(picks))
    loss, cost = float(losses[index, picks].sum()), int(costs[index, picks].sum())
    return Selection(picks.tolist(), loss, cost, bound, exact)
