"""Rank correlation, plain and partial, each with an interval that respects groups of linears.

Spearman's rho is Pearson's correlation of average ranks; the partial one is the correlation of what a
linear fit on the controls leaves of those ranks. Intervals are normal on Fisher's z scale: the spread
comes from resampling whole groups (linears that share inputs are not independent draws), or, with too
few groups for that, from Bonett and Wright's formula (Psychometrika 65, 2000).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_LEVEL_Z = 1.959963984540054  # two-sided 95 %
_FEWEST_GROUPS = 30
_CHUNK = 4_000_000  # weights held at once while resampling


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its 95 % interval; `value` is NaN when it cannot be computed."""

    value: float
    low: float
    high: float
    count: int
    """Pairs that entered."""
    method: Literal["bootstrap", "fisher", "none"]
    """Where the interval comes from; none: too few pairs for one, low and high are NaN."""

    @property
    def exists(self) -> bool:
        """Whether the correlation could be computed."""
        return not np.isnan(self.value)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


def ranks(values: ArrayLike) -> Floats:
    """Average ranks 1..n; equal values share their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return array
    counted_once = _weighted_ranks(array, np.ones((1, array.size)))
    return counted_once.reshape(array.size)


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    controls: ArrayLike | None = None,  # [n, p]
    groups: ArrayLike | None = None,  # [n] labels
    seed: int = 0,
) -> Correlation:
    """Spearman's rho of `x` and `y` given `controls`, over the pairs in which both are finite.

    Pairs with the same label in `groups` are resampled together; without labels every pair is its own.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(first) & np.isfinite(second)
    first, second = first[keep], second[keep]
    count = int(first.size)
    nothing = Correlation(np.nan, np.nan, np.nan, count, "none")
    if count < 3:
        return nothing
    design = _design(
        count, None if controls is None else np.asarray(controls, dtype=np.float64)[keep]
    )
    used = design.shape[1] - 1
    freedom = count - 3 - used
    if freedom < 0:
        return nothing
    everything = np.ones((1, count)), np.eye(used + 1)[None]
    value = float(_correlations(first, second, design, *everything)[0])
    if np.isnan(value):
        return nothing
    labels = np.arange(count) if groups is None else np.asarray(groups)[keep]
    _, members = np.unique(labels, return_inverse=True)
    centre = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    if int(members.max()) + 1 >= max(_FEWEST_GROUPS, 3 * (used + 1)):
        # large samples have narrow intervals, whose width need not be known as well
        resamples = int(np.clip(2_000_000 // count, 100, 1000))
        spread = _bootstrap_spread(first, second, design, members, resamples, seed)
        return _with_interval(value, centre, spread, count, "bootstrap")
    if freedom == 0:
        return Correlation(value, np.nan, np.nan, count, "none")
    spread = float(np.sqrt((1 + value**2 / 2) / freedom))
    return _with_interval(value, centre, spread, count, "fisher")


def partial_residuals(x: ArrayLike, controls: ArrayLike) -> Floats:
    """What the controls `[n, p]` leave of the ranks of `x`, as a share of n (so between -1 and 1)."""
    position = ranks(x)
    design = _design(position.size, np.asarray(controls, dtype=np.float64))
    fit, *_ = np.linalg.lstsq(design, position, rcond=None)
    return np.asarray((position - design @ fit) / position.size, dtype=np.float64)


def indicator_columns(labels: ArrayLike) -> Floats:
    """One 0/1 column per distinct label but the first. # [n, labels - 1]"""
    array = np.asarray(labels)
    return np.asarray(array[:, None] == np.unique(array)[None, 1:], dtype=np.float64)


def _with_interval(
    value: float, centre: float, spread: float, count: int, method: Literal["bootstrap", "fisher"]
) -> Correlation:
    low, high = np.tanh(centre - _LEVEL_Z * spread), np.tanh(centre + _LEVEL_Z * spread)
    return Correlation(value, float(low), float(high), count, method)


def _bootstrap_spread(
    x: Floats, y: Floats, design: Floats, members: NDArray[np.intp], resamples: int, seed: int
) -> float:
    """Standard deviation of Fisher's z when groups are drawn with replacement."""
    generator = np.random.default_rng(seed)
    total = int(members.max()) + 1
    step = max(1, _CHUNK // x.size)
    found: list[Floats] = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.multinomial(total, np.full(total, 1 / total), size=size).astype(
            np.float64
        )
        weights = drawn[:, members]
        found.append(_correlations(x, y, design, weights, _grams(design, members, drawn)))
    values = np.clip(np.concatenate(found), -1 + 1e-12, 1 - 1e-12)
    return float(np.std(np.arctanh(values[np.isfinite(values)])))


def _grams(design: Floats, members: NDArray[np.intp], drawn: Floats) -> Floats:
    """design^T design of each resample, from the share of every group. # [b, p, p]"""
    order = np.argsort(members, kind="stable")
    starts = np.flatnonzero(np.diff(members[order], prepend=-1))
    ordered = design[order]
    columns = [
        drawn @ np.add.reduceat(ordered[:, [column]] * ordered, starts, axis=0)
        for column in range(design.shape[1])
    ]
    return np.stack(columns, axis=1)


def _design(count: int, controls: Floats | None) -> Floats:
    """An orthonormal basis of an intercept and the controls, redundant ones left out. # [n, rank]"""
    columns = np.ones((count, 1))
    if controls is not None:
        columns = np.column_stack([columns, controls.reshape(count, -1)])
    lengths = np.linalg.norm(columns, axis=0)
    from scipy.linalg import qr  # takes a third of a second to import

    basis, triangle, _ = qr(
        columns[:, lengths > 0] / lengths[lengths > 0], mode="economic", pivoting=True
    )
    rank = int((np.abs(np.diagonal(triangle)) > 1e-7).sum())
    return np.ascontiguousarray(basis[:, :rank], dtype=np.float64)


def _correlations(x: Floats, y: Floats, design: Floats, weights: Floats, grams: Floats) -> Floats:
    """Partial correlation of the ranks of x and y, once per row of weights [b, n]. # [b]"""
    size = x.size
    first = _weighted_ranks(x, weights) / size - 0.5
    second = _weighted_ranks(y, weights) / size - 0.5
    weighted_first, weighted_second = weights * first, weights * second
    on_first, on_second = weighted_first @ design, weighted_second @ design
    # a resample may miss a role or block; the ridge then picks one of the equal solutions
    ridge = 1e-12 * np.eye(design.shape[1])
    solved = np.linalg.solve(grams + ridge, np.stack([on_first, on_second], axis=-1))
    solved_first, solved_second = solved[..., 0], solved[..., 1]
    both = (weighted_first * second).sum(1) - (on_first * solved_second).sum(1)
    alone_first = (weighted_first * first).sum(1) - (on_first * solved_first).sum(1)
    alone_second = (weighted_second * second).sum(1) - (on_second * solved_second).sum(1)
    # below this the ranks are explained by the controls to rounding error: there is nothing to correlate
    nothing = np.minimum(alone_first, alone_second) < 1e-9 * size
    scale = np.sqrt(np.where(nothing, 1.0, alone_first * alone_second))
    return np.where(nothing, np.nan, np.clip(both / scale, -1, 1))


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Average ranks of a sample in which value i occurs weights[b, i] times. # [b, n]"""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ties = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(ties, axis=1) - (ties - 1) / 2
    position = np.empty(values.size, dtype=np.intp)
    position[order] = np.repeat(np.arange(starts.size), np.diff(np.append(starts, values.size)))
    return middle[:, position]
