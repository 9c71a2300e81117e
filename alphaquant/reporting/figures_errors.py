"""Figure of the relative output error of every linear, before and after the method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alphaquant.reporting.strips import role_strips
from alphaquant.reporting.style import new_figure, plain_log, role_legend, role_points
from alphaquant.reporting.tables import role_order


def comparable(linears: pd.DataFrame) -> pd.DataFrame:
    """Linears that were rounded and whose error is known before and after the method."""
    data = linears[linears["error"].notna() & linears["error_rtn"].notna()]
    if "bits_per_weight" in data.columns:
        data = data[~(data["bits_per_weight"] >= 15.99)]
    return data[(data["error"] > 0) & (data["error_rtn"] > 0)]


def changed_by_method(data: pd.DataFrame) -> bool:
    """Whether the method's error differs from round-to-nearest's anywhere."""
    return not np.allclose(
        data["error"].astype("float64"), data["error_rtn"].astype("float64"), rtol=1e-6
    )


def error_figure(linears: pd.DataFrame, method: str) -> Figure | None:
    """Left: error after against before, below the diagonal is better. Right: the ratio by role.

    Where the method is rounding itself, only the errors by role.
    """
    data = comparable(linears)
    if data.empty:
        return None
    roles, kinds = role_order(data["role"]), data["role"].to_numpy(dtype=str)
    if not changed_by_method(data):
        figure = new_figure(0.4 * len(roles) + 1.2)
        axis = figure.subplots()
        role_strips(axis, data["error_rtn"].to_numpy(dtype="float64"), kinds, roles)
        plain_log(axis, "x")
        axis.set_xlabel("relative output error of round-to-nearest (no unit)")
        return figure
    figure = new_figure(4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    before, after = (data[name].to_numpy(dtype="float64") for name in ("error_rtn", "error"))
    low, high = min(before.min(), after.min()) / 1.3, max(before.max(), after.max()) * 1.3
    left.plot([low, high], [low, high], color="#555555", linewidth=1, zorder=1)
    role_points(left, before, after, kinds)
    left.set_xlim(low, high)
    left.set_ylim(low, high)
    plain_log(left, "x", "y")
    left.set_title(f"below the line: less error after {method}")
    left.set_xlabel("relative output error, round-to-nearest (no unit)")
    left.set_ylabel(f"relative output error, after {method} (no unit)")
    role_strips(right, after / before, kinds, roles)
    right.axvline(1, color="#555555", linewidth=1, zorder=1)
    right.set_title("left of the line: less error")
    right.set_xlabel(f"error after {method} / error of rounding to nearest")
    plain_log(right, "x")
    role_legend(figure, roles)
    return figure
