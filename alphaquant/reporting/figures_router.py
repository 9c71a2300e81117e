"""Figure of the routers: tokens whose experts changed, and what repaired them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphaquant.reporting.style import ACCENT, AFTER, BEFORE, new_figure

_STAGES = (("before", BEFORE, "s", "before router repair"), ("after", AFTER, "o", "after"))


def router_figure(
    blocks: pd.DataFrame | None, history: pd.DataFrame | None, summary: Mapping[str, Any]
) -> Figure | None:
    """Share of tokens whose experts differ from the original's; block errors and losses over steps, where known."""
    trained = history is not None and len(history) > 0
    if blocks is None and not trained:
        return None
    by_block = blocks is not None and "error" in blocks and bool(blocks["error"].notna().any())
    figure = new_figure(3.9)
    grid = figure.add_gridspec(2, (blocks is not None) + by_block + trained)
    if blocks is not None:
        label = "tokens whose experts changed (%)"
        _by_block(figure.add_subplot(grid[:, 0]), blocks, "changed", label)
        if by_block:
            label = "held-out block error (%)"
            _by_block(figure.add_subplot(grid[:, 1]), blocks, "error", label)
    if trained and history is not None:
        last = grid.ncols - 1
        top = None
        has_train = "train_loss" in history.columns and bool(history["train_loss"].notna().any())
        if has_train:
            top = figure.add_subplot(grid[0, last])
            _curve(top, history, "train_loss", "training loss\n(nats per token)", ACCENT)
            top.tick_params(labelbottom=False)
        bottom = figure.add_subplot(grid[1, last] if has_train else grid[:, last], sharex=top)
        _curve(bottom, history, "heldout_kl", "held-out KL\n(nats per token)", AFTER)
        bottom.set_xlabel("training step")
        if isinstance(before := summary.get("kl_before"), int | float):
            bottom.axhline(
                float(before), color=BEFORE, linewidth=1.2, linestyle="--", label="before repair"
            )
            bottom.legend(loc="best", fontsize=8)
    return figure


def _by_block(axis: Axes, blocks: pd.DataFrame, column: str, description: str) -> None:
    for stage, colour, marker, label in _STAGES:
        part = blocks[blocks["stage"] == stage].sort_values("block")
        if len(part):
            places = part["block"].to_numpy(dtype="float64")
            shares = 100 * part[column].to_numpy(dtype="float64")
            axis.plot(
                places,
                shares,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                label=label,
            )
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("block (0 is nearest to the input)")
    axis.set_ylabel(description)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)


def _curve(axis: Axes, history: pd.DataFrame, column: str, label: str, colour: str) -> None:
    part = history[history[column].notna()]
    steps, values = (part[name].to_numpy(dtype="float64") for name in ("step", column))
    marker = "o" if len(part) <= 40 else ""
    axis.plot(steps, values, color=colour, marker=marker, markersize=3.5, linewidth=1.3)
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
