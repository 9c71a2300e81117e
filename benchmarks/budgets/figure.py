"""Bits against what they cost: a column per model, a row per held-out text and way of rounding, a line per policy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from alphaquant.reporting.style import ACCENT, drawing, new_figure, png
from alphaquant.reporting.sweep import front
from benchmarks.budgets.measured import Trial
from benchmarks.budgets.spending import POLICIES

_STYLE = {
    "budget": (ACCENT, "o"),
    "alphaq": ("#CC79A7", "v"),
    "alpha": ("#882255", "^"),
    "ratio": ("#E69F00", "D"),
    "uniform": ("#0072B2", "s"),
    "random": ("#777777", "X"),
}
_ROW = 3.3
"""Inches."""
_MARGIN = 0.15
"""Bits on either side, so that plans of one budget lie together."""


def draw(table: pd.DataFrame, trials: Sequence[Trial]) -> bytes:
    """PNG of a `long_table`; single plans of chance are small dots. Lower left is better."""
    models = list(table["model"].unique())
    rows = list(table[["text", "recipe"]].drop_duplicates().itertuples(index=False, name=None))
    with drawing():
        figure = new_figure(_ROW * len(rows) + 1.1)
        axes = figure.subplots(len(rows), len(models), sharex=True, sharey="row", squeeze=False)
        for row, (text, recipe) in zip(axes, rows, strict=True):
            for axis, model in zip(row, models, strict=True):
                panel = table[
                    (table["model"] == model)
                    & (table["text"] == text)
                    & (table["recipe"] == recipe)
                ]
                if panel.empty:
                    axis.set_axis_off()
                    continue
                own = [one for one in trials if one.result.model == model and one.recipe == recipe]
                _panel(axis, panel, own, text)
                axis.set_title(f"{model}, {text}\n{recipe}, {panel['standing'].iloc[0]}")
        bits = table["bits_per_weight"]
        axes[0, 0].set_xlim(bits.min() - _MARGIN, bits.max() + _MARGIN)
        figure.supxlabel("stored bits per weight", fontsize=9.5)
        figure.supylabel("KL to the original, nats per token", fontsize=9.5)
        figure.legend(handles=_handles(table), loc="outside upper center", ncols=7)
        return png(figure)


def _panel(axis: Axes, panel: pd.DataFrame, trials: Sequence[Trial], text: str) -> None:
    best = front(panel["bits_per_weight"].round(2).to_list(), panel["kl"].to_list())
    axis.step(
        panel["bits_per_weight"].iloc[best],
        panel["kl"].iloc[best],
        where="post",
        color="#999999",
        linewidth=0.9,
        linestyle=":",
        zorder=1,
    )
    for one in trials:
        if one.policy == "random" and text in one.result.kl:
            kl = one.result.value(text, "kl_mean")
            axis.plot(one.bits_per_weight, kl, ".", color=_STYLE["random"][0], alpha=0.35)
    for policy, own in panel.groupby("policy", sort=False):
        colour, marker = _STYLE[str(policy)]
        points = own.sort_values("target_bits")
        bits = points["bits_per_weight"]
        axis.vlines(bits, points["low"], points["high"], color=colour, linewidth=1.2, zorder=2)
        axis.plot(
            bits, points["kl"], marker, color=colour, linestyle="-",
            linewidth=1.2, markersize=4.5, zorder=3,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _handles(table: pd.DataFrame) -> list[Line2D]:
    found = []
    for policy in (one.name for one in POLICIES):
        if (table["policy"] == policy).any():
            colour, marker = _STYLE[policy]
            found.append(
                Line2D(
                    [], [], color=colour, marker=marker, linestyle="-", label=policy, markersize=4.5
                )
            )
    return [*found, Line2D([], [], color="#999999", linestyle=":", label="Pareto front")]
