"""Direction: whether a larger or a smaller alpha marks the linears that need more bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphaquant.config import AllocationConfig
from alphaquant.errors import PlanError
from alphaquant.progress import reporter

if TYPE_CHECKING:
    import pandas as pd


def protect_sign(
    config: AllocationConfig,
    alphas: pd.Series[float],
    sizes: pd.Series[int],
    sensitivity: pd.DataFrame | None,
) -> int:
    """+1 where larger alphas are to be protected, -1 where smaller ones are.

    protect=measured takes the sign of the rank correlation between alpha and the predicted loss per
    weight at the cheapest measured format; without an answer it falls back to +1 and says so.
    `alphas` and `sizes` are indexed by linear.
    """
    if config.protect != "measured":
        return 1 if config.protect == "high_alpha" else -1
    correlation = None if sensitivity is None else _correlation(alphas, sizes, sensitivity)
    if not correlation:
        reporter().note(
            "allocation.protect is measured, but there is no measured sensitivity to rank by; "
            "high_alpha is used"
        )
        return 1
    sign = 1 if correlation > 0 else -1
    reporter().note(
        f"alpha and measured sensitivity have rank correlation {correlation:+.2f}: "
        f"{'high' if sign > 0 else 'low'} alpha is protected"
    )
    return sign


def alpha_rows(alpha: pd.DataFrame | None, names: list[str]) -> pd.DataFrame:
    """The rows of the alpha table for `names`, in that order. Raises PlanError when one is missing."""
    if alpha is None:
        raise PlanError("this allocation policy needs the alpha table; run the stage alpha first")
    table = alpha.set_index("linear")
    if missing := [name for name in names if name not in table.index]:
        raise PlanError(
            f"the alpha table has no row for {missing[0]} ({len(missing)} of {len(names)} linears "
            "are missing); compute alpha for this model again"
        )
    return table.loc[names]


def filled(values: pd.Series[float]) -> pd.Series[float]:
    """Undefined alphas replaced by the median, which favours nobody; by 1 when none is defined."""
    return values.fillna(values.median()).fillna(1.0)


def _correlation(
    alphas: pd.Series[float], sizes: pd.Series[int], sensitivity: pd.DataFrame
) -> float | None:
    cheapest = sensitivity.groupby("format")["bits_per_weight"].mean().idxmin()
    losses = sensitivity[sensitivity["format"] == cheapest].set_index("linear")["predicted_loss"]
    measured = (losses.reindex(alphas.index) / sizes)[alphas.notna()].dropna()
    ranks = alphas[measured.index].rank()
    if ranks.nunique() < 2 or measured.nunique() < 2:
        return None
    return float(ranks.corr(measured.rank()))
