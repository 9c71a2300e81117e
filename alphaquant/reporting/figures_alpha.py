"""Figures of alpha itself: by role, by depth, and what it has to do with another column."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from alphaquant.models.linear import ATTENTION_ROLES
from alphaquant.reporting.linears import Relation
from alphaquant.reporting.notation import correlation_text
from alphaquant.reporting.statistics import Floats, partial_residuals
from alphaquant.reporting.strips import role_strips
from alphaquant.reporting.style import new_figure, plain_log, role_legend, role_points, role_style
from alphaquant.reporting.tables import role_order


def alpha_by_role(linears: pd.DataFrame) -> Figure:
    """Box (quartiles, whiskers to 5 and 95 %) and points of alpha per role, and each role's null value."""
    data = _finite(linears)
    roles = role_order(data["role"])
    figure = new_figure(0.42 * len(roles) + 1.5)
    axis = figure.subplots()
    values = data["alpha"].to_numpy(dtype="float64")
    role_strips(axis, values, data["role"].to_numpy(dtype=str), roles)
    for place, role in enumerate(roles if "alpha_null" in data.columns else []):
        nulls = data.loc[data["role"] == role, "alpha_null"].dropna().to_numpy(dtype="float64")
        for null in np.unique(nulls.round(3)):
            axis.plot(
                [null, null], [place - 0.36, place + 0.36], color="#B00020", linewidth=2, zorder=4
            )
    axis.set_xlabel("alpha, Hill exponent of the spectrum's tail (no unit)")
    plain_log(axis, "x")
    null = Line2D([], [], color="#B00020", linewidth=2, label="random matrix of the same shape")
    figure.legend(handles=[null], loc="outside lower center")
    return figure


def alpha_by_depth(linears: pd.DataFrame) -> Figure | None:
    """Median alpha per block and role; a band holds the middle half where a block has several linears."""
    data = _finite(linears)
    data = data[data["block"].notna() & (data["role"] != "router")]
    halves = [
        ("attention", data[data["role"].isin(list(ATTENTION_ROLES))]),
        ("MLP and experts", data[~data["role"].isin(list(ATTENTION_ROLES))]),
    ]
    halves = [(title, part) for title, part in halves if not part.empty]
    if not halves:
        return None
    figure = new_figure(3.9)
    axes = figure.subplots(1, len(halves), sharey=True, squeeze=False)[0]
    for axis, (title, part) in zip(axes, halves, strict=True):
        for role in role_order(part["role"]):
            grouped = part[part["role"] == role].groupby("block")["alpha"]
            spread = grouped.quantile(np.array([0.25, 0.5, 0.75])).unstack()
            blocks = spread.index.to_numpy(dtype="float64")
            colour, marker = role_style(role)
            axis.plot(
                blocks,
                spread[0.5],
                color=colour,
                marker=marker,
                markersize=4.5,
                linewidth=1.4,
                label=role,
            )
            if int(grouped.size().max()) > 1:
                _band(axis, blocks, spread, colour)
        axis.set_title(title)
        axis.set_xlabel("block (0 is nearest to the input)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set_ylabel("alpha (no unit)")
    role_legend(figure, role_order(data["role"]))
    return figure


def relation_figure(relation: Relation) -> Figure | None:
    """Left: alpha against the other column. Right: the ranks that role, depth and size leave over."""
    data = relation.data
    if len(data) < 3:
        return None
    figure = new_figure(4.6)
    left, right = figure.subplots(1, 2)
    x = data[relation.x].to_numpy(dtype="float64")
    y = data[relation.y].to_numpy(dtype="float64")
    roles = data["role"].to_numpy(dtype=str)
    drawn = y > 0
    role_points(left, x[drawn], y[drawn], roles[drawn])
    plain_log(left, "y")
    left.set_xlabel("alpha (no unit)")
    left.set_ylabel(relation.y_label)
    left.set_title(f"all linears:\n{correlation_text(relation.plain)}")
    if relation.partial.exists:
        first, second = (partial_residuals(values, relation.controls) for values in (x, y))
        role_points(right, first, second, roles)
        right.axhline(0, color="#999999", linewidth=0.8, zorder=1)
        right.axvline(0, color="#999999", linewidth=0.8, zorder=1)
        right.xaxis.set_major_locator(MaxNLocator(6))
        right.set_xlabel("rank of alpha beyond the controls (share of all linears)")
        right.set_ylabel(f"rank of {relation.thing} beyond the controls")
    else:
        right.text(0.5, 0.5, "too few linears for the controls", ha="center", color="#555555")
        right.set_axis_off()
    right.set_title(f"given {relation.given}:\n{correlation_text(relation.partial)}")
    role_legend(figure, role_order(data["role"]))
    return figure


def _finite(linears: pd.DataFrame) -> pd.DataFrame:
    return linears[np.isfinite(linears["alpha"].astype("float64"))]


def _band(axis: Axes, blocks: Floats, spread: pd.DataFrame, colour: str) -> None:
    if blocks.size == 1:
        axis.plot(
            [blocks[0], blocks[0]],
            [spread[0.25].iloc[0], spread[0.75].iloc[0]],
            color=colour,
            linewidth=1,
        )
    else:
        axis.fill_between(blocks, spread[0.25], spread[0.75], color=colour, alpha=0.15, linewidth=0)
