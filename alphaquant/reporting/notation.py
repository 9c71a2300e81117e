"""How numbers are written in the report: three digits, true minus signs, units next to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alphaquant.sizes import unit_of

if TYPE_CHECKING:
    from alphaquant.reporting.scores import Score
    from alphaquant.reporting.statistics import Correlation


def number(value: float, digits: int = 3) -> str:
    """Three significant digits or more; thousands apart, powers of ten only below 0.0001."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(float(f"{value:.{digits - 1}e}"))  # 0.0009999 is written 0.00100
    if size >= 1e7:
        text = f"{value:.2e}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 1e-4:
        text = f"{value:.{max(digits - 1 - int(np.floor(np.log10(size))), 0)}f}"
    else:
        text = "0" if size == 0 else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def percent(share: float, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return "–" if np.isnan(share) else f"{100 * share:.{digits}f} %".replace("-", "−")


def signed(value: float) -> str:
    """Two decimals with the sign always written, as correlations are."""
    return f"{value:+.2f}".replace("-", "−")


def shown(score: Score) -> str:
    """A score's value as people write it: small changes of a perplexity matter, those of a KL do not."""
    return percent(score.value) if score.is_share else number(score.value, _digits(score))


def shown_change(before: Score | None, after: Score) -> str:
    """`5.43 → 5.58`, or the second alone where the original was not measured."""
    if before is None:
        return shown(after)
    return (
        f"{shown(before).removesuffix(' %') if after.is_share else shown(before)} → {shown(after)}"
    )


def change_text(before: Score | None, after: Score, paired: Score | None) -> str:
    """How much a score moved: points of a share, else per cent; the interval of the paired change."""
    if paired is not None:
        ratio = paired.metric == "perplexity_ratio"
        if not ratio and not after.is_share:
            return f"{signed(paired.value)}{_range(paired.low, paired.high)}"
        shift = 1 if ratio else 0
        value, low, high = (100 * (x - shift) for x in (paired.value, paired.low, paired.high))
        return f"{signed(value)}{' %' if ratio else ' points'}{_range(low, high)}"
    if before is None or before.value == 0 or not np.isfinite(after.value / before.value):
        return ""
    if after.is_share:
        return f"{signed(100 * (after.value - before.value))} points"
    return f"{signed(100 * (after.value / before.value - 1))} %"


def _range(low: float, high: float) -> str:
    return "" if np.isnan(low) or np.isnan(high) else f" ({signed(low)} to {signed(high)})"


def shown_interval(score: Score) -> str:
    """A score's interval as `low to high`, or nothing where none was measured."""
    if np.isnan(score.low) or np.isnan(score.high):
        return ""
    if score.is_share:
        return f"{100 * score.low:.1f} to {percent(score.high)}"
    return f"{number(score.low, _digits(score))} to {number(score.high, _digits(score))}"


def _digits(score: Score) -> int:
    return 3 if score.metric.startswith("kl") else 4


def correlation_text(found: Correlation) -> str:
    """`ρ = +0.48 [+0.35, +0.60]`, or words where there is no value or no interval."""
    if not found.exists:
        return "ρ is not defined"
    if np.isnan(found.low):
        return f"ρ = {signed(found.value)}, no interval"
    return f"ρ = {signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def share_text(share: float) -> str:
    """A share without decimals; what is there but rounds to nothing is `<1 %`."""
    return "<1 %" if 0 < share < 0.005 else percent(share, 0)


def size_change(before: float, after: float) -> str:
    """Two amounts of bits in decimal bytes, in the unit that suits the smaller."""
    unit, name = unit_of(after / 8)
    return f"{number(before / 8 / unit)} → {number(after / 8 / unit)} {name}"


def count(amount: int, thing: str) -> str:
    """`1 linear`, `2 linears`."""
    return f"{amount:,} {thing}" if amount == 1 else f"{amount:,} {thing}s"
