"""The ablation as one picture: a panel per format, a line per recipe, a mark per model with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from alphaquant.reporting.style import ACCENT, drawing, new_figure, png
from benchmarks.ablation.recipes import Row

_MARKS = (("#0072B2", "o"), (ACCENT, "D"), ("#009E73", "s"), ("#CC79A7", "^"), ("#000000", "v"))
_SPREAD = 0.5
"""Of a line's height, that the marks of its models take."""
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3)
_FINE = (0.8, 0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.2)
"""Where all ratios lie between the first and the last of them."""
_FAR = 3.0
"""Ratio beyond which marks are drawn at the edge, as arrows: one failure must not press the rest together."""


def draw(table: pd.DataFrame, rows: Sequence[Row]) -> bytes:
    """PNG of the ratios in `table`, for the text of each model that `shown_texts` names. Left is better."""
    texts = shown_texts(table)
    scored = table[table["text"].notna() & table["ratio"].notna() & (table["ingredient"] != "")]
    scored = scored[scored["text"] == scored["model"].map(texts)]
    lines = [row for row in rows if (scored["row"] == row.name).any()]
    if not lines:
        raise ValueError("no ratio is known: the recipes themselves have no result")
    formats, models = list(scored["format"].unique()), list(texts)
    places = _places(lines)
    fine = scored["ratio"].between(_FINE[0], _FINE[-1]).all()
    with drawing():
        figure = new_figure(0.3 * (max(places.values()) + 1) + 1.6)
        axes = figure.subplots(1, len(formats), sharex=True, sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, formats, strict=True):
            _panel(axis, scored[scored["format"] == name], places, models)
            axis.xaxis.set_major_locator(FixedLocator(_FINE if fine else _TICKS))
            axis.set_title(name)
        axes[0].set_yticks(list(places.values()), list(places))
        handles = [
            Line2D([], [], color=colour, marker=mark, label=f"{model}, {texts[model]}")
            for model, (colour, mark) in zip(models, _marks(models), strict=True)
        ]
        figure.supxlabel("KL to the original, as a multiple of the recipe's", fontsize=9.5)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        return png(figure)


def shown_texts(table: pd.DataFrame) -> dict[str, str]:
    """By model, the last held-out text on which nothing was chosen, else its last text."""
    found: dict[str, str] = {}
    for model, own in table[table["text"].notna()].groupby("model", sort=False):
        back = own.loc[own["standing"] == "held back", "text"]
        found[str(model)] = str((back if len(back) else own["text"]).iloc[-1])
    return found


def _places(lines: Sequence[Row]) -> dict[str, float]:
    """Height of each line, with a gap between the recipes' parts."""
    places: dict[str, float] = {}
    at, last = 0.0, lines[0].base
    for row in lines:
        at += 0.8 if row.base != last else 0.0
        places[row.name] = at
        at, last = at + 1.0, row.base
    return places


def _marks(models: Sequence[str]) -> list[tuple[str, str]]:
    return [_MARKS[place % len(_MARKS)] for place in range(len(models))]


def _panel(
    axis: Axes, panel: pd.DataFrame, places: dict[str, float], models: Sequence[str]
) -> None:
    axis.axvline(1.0, color="#555555", linewidth=1.0, zorder=1)
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(models)) if len(models) > 1 else [0.0]
    for model, offset, (colour, mark) in zip(models, offsets, _marks(models), strict=True):
        for one in panel[panel["model"] == model].to_dict("records"):
            place = places[str(one["row"])] + float(offset)
            if one["ratio"] > _FAR:
                axis.plot(_FAR, place, ">", color=colour, markersize=5, zorder=3, clip_on=False)
                continue
            if not np.isnan(one["ratio_low"]):
                ends = [one["ratio_low"], min(one["ratio_high"], _FAR)]
                axis.plot(ends, [place, place], color=colour, linewidth=1.3, zorder=2)
            axis.plot(one["ratio"], place, mark, color=colour, markersize=4.5, zorder=3)
    axis.margins(x=0.06)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(max(places.values()) + 0.6, -0.6)
