"""Alpha as a prior: what spectra add to measured end-loss weights, and how much they deserve to.

A linear's end-loss weight is its predicted loss per change of its output. Measured from few tokens it
is noisy, and where spectra foretell it, leaning on them makes it better. Both sides are learned from the
measurement: its noise from the spread over calibration windows, the prior by a ridge regression of the
log weights on role, block and log(alpha / null). Types alone are no news to the measurement, so the
prior's precision is what alpha adds to theirs,

    max(0, 1 / v_with - 1 / v_without),

with v the variance that each regression leaves on linears it has not seen, measurement noise taken off.
Where alpha does not lower the error on unseen linears by more than chance would (two standard errors), the
precision is zero, and the measurement stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alphaquant.algorithms.allocation_direction import alpha_rows, filled
from alphaquant.models.linear import ATTENTION_ROLES, LinearSpec
from alphaquant.progress import reporter

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

RIDGE = 1.0
"""Penalty on effects, against columns of unit variance."""
_FEWEST = 8
"""Linears below which nothing is learned."""
_FLOOR = 0.05
"""Share of the error on unseen linears that noise cannot explain away."""


@dataclass(frozen=True, slots=True)
class AlphaPrior:
    """What was learned, over the linears whose weight was measured; variances are of log weights."""

    slope: float
    """Change of the log weight per change of log(alpha / null)."""
    noise: float
    """Median variance of the measurement."""
    without: float
    """Variance that role and block leave."""
    with_alpha: float
    """Variance that role, block and alpha leave."""
    precision: float
    """Weight of the prior, in inverse variance; zero where alpha adds nothing."""
    share: float
    """Mean weight of the prior against the measurement, from 0 to 1."""
    linears: int
    """How many it was learned from."""

    @property
    def words(self) -> str:
        """One line for a log."""
        return (
            f"alpha's weight in the measured losses is {self.share:.2%} "
            f"(log weights of unseen linears: variance {self.with_alpha:.3g} with alpha, "
            f"{self.without:.3g} without; measurement noise {self.noise:.3g})"
        )


def apply_prior(
    specs: Sequence[LinearSpec],
    losses: pd.DataFrame,
    alpha: pd.DataFrame | None,
    sensitivity: pd.DataFrame,
) -> tuple[pd.DataFrame, AlphaPrior | None]:
    """Losses, linears by options, with every row scaled to its linear's weight after the prior.

    None, and the losses unchanged, where the sensitivity table tells no noise or too few linears have a
    measured weight. Raises PlanError when the alpha table lacks a linear.
    """
    found = learn_prior(specs, alpha, sensitivity)
    if found is None:
        reporter().note("alpha is no prior here: the noise of the measured losses is not known")
        return losses, None
    prior, shift = found
    reporter().note(prior.words)
    return losses.mul(np.exp(shift.reindex(losses.index).fillna(0.0)), axis=0), prior


def learn_prior(
    specs: Sequence[LinearSpec], alpha: pd.DataFrame | None, sensitivity: pd.DataFrame
) -> tuple[AlphaPrior, pd.Series[float]] | None:
    """The prior and, by linear, how far it moves the log weight."""
    import pandas as pd

    names = [spec.name for spec in specs]
    table = alpha_rows(alpha, names)
    if not {"stderr", "output_change"} <= set(sensitivity.columns):
        return None
    cheapest = sensitivity.groupby("format")["bits_per_weight"].mean().idxmin()
    rows = sensitivity[sensitivity["format"] == cheapest].set_index("linear").reindex(names)
    loss, change = rows["predicted_loss"].to_numpy(float), rows["output_change"].to_numpy(float)
    relative = rows["stderr"].to_numpy(float) / np.where(loss > 0, loss, np.nan)
    known = (loss > 0) & (change > 0) & np.isfinite(relative) & (relative > 0)
    if known.sum() < _FEWEST:
        return None
    chosen = [spec for spec, seen in zip(specs, known, strict=True) if seen]
    groups = _groups(chosen)
    if not groups.any():
        return None
    measured = np.log(loss[known] / change[known])
    noise = np.log1p(relative[known] ** 2)
    excess = np.log(filled(table["alpha"] / table["alpha_null"]).to_numpy(float))[known]
    types = _types(chosen)
    _, _, unseen = _ridge(types, measured, groups)
    fitted, effects, unseen_with = _ridge(np.column_stack([types, excess]), measured, groups)
    without, with_alpha = (_excess_variance(errors, noise) for errors in (unseen, unseen_with))
    precision = max(0.0, 1 / with_alpha - 1 / without)
    if not _is_surely_positive(unseen**2 - unseen_with**2, groups):
        precision = 0.0
    share = precision / (precision + 1 / noise)
    spread = float(excess.std())
    prior = AlphaPrior(
        slope=float(effects[-1] / spread) if spread > 0 else 0.0,
        noise=float(np.median(noise)),
        without=without,
        with_alpha=with_alpha,
        precision=precision,
        share=float(share.mean()),
        linears=len(chosen),
    )
    return prior, pd.Series(share * (fitted - measured), index=[spec.name for spec in chosen])


def _types(specs: Sequence[LinearSpec]) -> Floats:
    """Indicators of role and of block. # [n, roles + blocks]"""
    columns = [
        np.array([label(spec) == value for spec in specs], dtype=np.float64)
        for label in (_role, _block)
        for value in sorted({label(spec) for spec in specs})
    ]
    return np.column_stack(columns)


def _role(spec: LinearSpec) -> str:
    return spec.role if spec.expert is None else f"expert {spec.role}"


def _block(spec: LinearSpec) -> str:
    return str(spec.block)


def _groups(specs: Sequence[LinearSpec]) -> npt.NDArray[np.intp]:
    """One label per attention, MLP or expert of a block, whose linears are alike. # [n]"""
    labels = [(s.block, s.role in ATTENTION_ROLES, s.expert) for s in specs]
    order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels])


def _ridge(
    columns: Floats, target: Floats, groups: npt.NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Fitted values, effects of the columns in units of their spread, and errors on unseen groups.

    A group's error is that of the regression without it, from the hat matrix: (I - H_gg)^-1 of what
    the whole regression leaves there.
    """
    centred = columns - columns.mean(axis=0)
    spread = centred.std(axis=0)
    design = centred / np.where(spread > 0, spread, 1.0)
    solver = np.linalg.solve(design.T @ design + RIDGE * np.eye(design.shape[1]), design.T)
    effects = solver @ (target - target.mean())
    fitted = target.mean() + design @ effects
    left = target - fitted
    unseen = np.empty_like(left)
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        # the mean is a column of its own that carries no penalty
        hat = design[members] @ solver[:, members] + 1 / len(target)
        unseen[members] = np.linalg.solve(np.eye(len(members)) - hat, left[members])
    return fitted, effects, unseen


def _is_surely_positive(gains: Floats, groups: npt.NDArray[np.intp]) -> bool:
    """Whether the sum of the groups' gains is more than two of its standard errors above zero."""
    sums = np.bincount(groups, gains)
    error = sums.std(ddof=1) * np.sqrt(len(sums))
    return bool(sums.sum() > 2 * error)


def _excess_variance(errors: Floats, noise: Floats) -> float:
    """Mean squared error without what measurement noise explains."""
    square = errors**2
    return float(max((square - noise).mean(), _FLOOR * square.mean(), 1e-12))
