"""Equal-budget comparison: what alpha's two directions would cost at the bits that the plan spends.

Every linear starts at a lower format, and linears are raised to a higher one in a given order until the
plan's bits are spent. The last raised linear counts in part, so that all orders spend exactly the same.
The cost is the sum of the predicted losses that the sensitivity table holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from alphaquant.reporting.statistics import Floats

HIGH, HIGH_WITHIN = "high alpha first", "high alpha first, within each role"
LOW, LOW_WITHIN = "low alpha first", "low alpha first, within each role"
MEASURED = "most loss saved per bit first"

_ROOM = 0.5  # bits between the budget and each of the two formats, where the table allows it


@dataclass(frozen=True)
class BudgetComparison:
    """Predicted loss (nats per token) of each order at the same bits per weight."""

    low: str
    high: str
    bits: float
    """Bits per weight that every order spends, over the linears that were measured."""
    linears: int
    losses: Mapping[str, float]
    """By order: HIGH, LOW, both also within each role, and MEASURED."""
    random: Floats
    """Losses of orders drawn at random."""
    plan: float | None
    """Loss of the run's own plan, which may use more formats than these two."""


def compare_orders(
    linears: pd.DataFrame, sensitivity: pd.DataFrame, *, draws: int = 200, seed: int = 0
) -> BudgetComparison | None:
    """Spend the plan's bits in several orders; None when the table has no format on one side of the budget."""
    if not {"alpha", "bits_per_weight"} <= set(linears.columns):
        return None
    losses = sensitivity.pivot_table(
        index="linear", columns="format", values="predicted_loss", sort=True
    )
    bits = sensitivity.pivot_table(
        index="linear", columns="format", values="bits_per_weight", sort=True
    )
    data = linears[(linears["role"] != "router") & linears["bits_per_weight"].notna()]
    data = data[np.isfinite(data["alpha"].astype("float64")) & data["linear"].isin(losses.index)]
    if len(data) < 3:
        return None
    losses, bits = losses.loc[data["linear"]], bits.loc[data["linear"]]
    whole = [name for name in losses.columns if bool(losses[name].notna().all())]
    size = data["size"].to_numpy(dtype="float64")
    budget = float(np.average(data["bits_per_weight"], weights=size))
    pair = _formats_around(
        {name: float(np.average(bits[name], weights=size)) for name in whole}, budget
    )
    if pair is None:
        return None
    low, high = pair
    dearer = (bits[high] > bits[low]).to_numpy(dtype=bool)
    data, losses, bits, size = data[dearer], losses[dearer], bits[dearer], size[dearer]
    base = losses[low].to_numpy(dtype="float64")
    gain = base - losses[high].to_numpy(dtype="float64")
    price = size * (bits[high] - bits[low]).to_numpy(dtype="float64")
    spare = float(
        size @ (data["bits_per_weight"].to_numpy("float64") - bits[low].to_numpy("float64"))
    )

    def cost(key: Floats) -> float:
        order = np.argsort(-key, kind="stable")
        before = np.cumsum(price[order]) - price[order]
        raised = np.clip((spare - before) / price[order], 0, 1)
        return float(base.sum() - gain[order] @ raised)

    alpha = data["alpha"].to_numpy(dtype="float64")
    within = data.groupby("role")["alpha"].rank(pct=True).to_numpy(dtype="float64")
    generator = np.random.default_rng(seed)
    own = data["loss"] if "loss" in data.columns else None
    return BudgetComparison(
        low=low,
        high=high,
        bits=budget,
        linears=len(data),
        losses={
            HIGH: cost(alpha),
            HIGH_WITHIN: cost(within),
            LOW: cost(-alpha),
            LOW_WITHIN: cost(-within),
            MEASURED: cost(gain / price),
        },
        random=np.array([cost(generator.random(len(data))) for _ in range(draws)]),
        plan=float(own.sum()) if own is not None and bool(own.notna().all()) else None,
    )


def _formats_around(bits: Mapping[str, float], budget: float) -> tuple[str, str] | None:
    """The nearest formats at least half a bit below and above the budget, or just below and above it."""
    ordered = sorted(bits, key=lambda name: (bits[name], name))
    for room in (_ROOM, 1e-6):
        below = [name for name in ordered if bits[name] <= budget - room]
        above = [name for name in ordered if bits[name] >= budget + room]
        if below and above:
            return below[-1], above[0]
    return None
