"""Figures of what compression cost: scores side by side, and other plans at the same bits."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphaquant.reporting.budget import BudgetComparison
from alphaquant.reporting.scores import BEFORE_ROUTER, QUANTIZED, Score, Scores
from alphaquant.reporting.style import ACCENT, AFTER, BEFORE, new_figure, plain_log

_COLUMNS = 3
_LONGEST = 34


def score_figure(scores: Scores) -> Figure | None:
    """One small panel per metric: dot and 95 % interval of every model that has it."""
    pairs = scores.pairs()
    if not pairs:
        return None
    rows = -(-len(pairs) // _COLUMNS)
    figure = new_figure(1.5 * rows + 0.5)
    panels = figure.subplots(rows, min(_COLUMNS, len(pairs)), squeeze=False).ravel()
    for axis in panels[len(pairs) :]:
        axis.set_axis_off()
    for axis, (first, second) in zip(panels, pairs, strict=False):
        middle = scores.find(second.metric, BEFORE_ROUTER, second.task)
        drawn = [
            (score, colour, label)
            for score, colour, label in (
                (first, BEFORE, "original"),
                (middle, ACCENT, "router untrained"),
                (second, AFTER, "quantized"),
            )
            if score is not None
        ]
        _dots(axis, drawn)
        better = "lower" if second.lower_is_better else "higher"
        axis.set_title(f"{_short(second.task)}\n{_short(_metric(second))}", fontsize=9)
        axis.set_xlabel(f"{better} is better", fontsize=8, color="#555555")
    return figure


def rival_figure(scores: Scores) -> Figure | None:
    """KL to the original of this plan and of the others that were measured, one row each."""
    rivals, own = scores.rivals(), scores.find("kl_mean")
    if not rivals or own is None:
        return None
    figure = new_figure(0.36 * (len(rivals) + 1) + 1.0)
    axis = figure.subplots()
    rows = [("this plan", [own]), *((rival.text, list(rival.scores)) for rival in rivals)]
    rows.sort(key=lambda row: np.median([score.value for score in row[1]]))
    for place, (_, found) in enumerate(rows):
        colour = AFTER if found[0].model == QUANTIZED else BEFORE
        values = [score.value for score in found]
        alone = len(found) == 1
        if alone and np.isfinite(found[0].low):
            axis.plot([found[0].low, found[0].high], [place, place], color=colour, linewidth=2)
        axis.scatter(
            values,
            [place] * len(values),
            s=42 if alone else 22,
            color=colour,
            alpha=1 if alone else 0.6,
            linewidths=0,
            zorder=3,
        )
    axis.axvline(own.value, color=AFTER, linewidth=0.9, linestyle="--", zorder=1)
    every = [score.value for _, found in rows for score in found]
    if min(every) > 0 and max(every) / min(every) > 8:
        plain_log(axis, "x")
    _finish_rows(
        axis, [label for label, _ in rows], "mean token KL to the original (nats per token)"
    )
    return figure


def budget_figure(comparison: BudgetComparison) -> Figure:
    """Predicted loss of each order of spending the same bits; the bar spans random orders."""
    figure = new_figure(0.4 * (len(comparison.losses) + 2) + 1.0)
    axis = figure.subplots()
    rows: list[tuple[str, float]] = sorted(
        [*comparison.losses.items(), ("random order", float(np.median(comparison.random)))],
        key=lambda row: -row[1],
    )
    if comparison.plan is not None:
        rows.append(("this run's plan (all its formats)", comparison.plan))
    low, high = np.percentile(comparison.random, [2.5, 97.5])
    axis.axvspan(float(low), float(high), color="#DDDDDD", alpha=0.6, zorder=0)
    for place, (label, value) in enumerate(rows):
        colour = BEFORE if label.startswith("random") else AFTER if "alpha" in label else ACCENT
        axis.scatter([value], [place], s=46, color=colour, zorder=3)
        if label.startswith("random"):
            axis.plot([low, high], [place, place], color=BEFORE, linewidth=2)
    values = [value for _, value in rows]
    if min(values) > 0 and max(values) / min(values) > 8:
        plain_log(axis, "x")
    _finish_rows(axis, [label for label, _ in rows], "sum of predicted losses (nats per token)")
    return figure


def _dots(axis: Axes, drawn: list[tuple[Score, str, str]]) -> None:
    for place, (score, colour, _) in enumerate(drawn):
        scale = 100 if score.is_share else 1
        if np.isfinite(score.low) and np.isfinite(score.high):
            axis.plot(
                [scale * score.low, scale * score.high], [place, place], color=colour, linewidth=2
            )
        axis.scatter([scale * score.value], [place], s=40, color=colour, zorder=3)
    axis.set_yticks(range(len(drawn)), [label for _, _, label in drawn])
    axis.set_ylim(len(drawn) - 0.4, -0.6)
    axis.margins(x=0.18)
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_locator(MaxNLocator(3))


def _finish_rows(axis: Axes, names: list[str], label: str) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(label)


def _metric(score: Score) -> str:
    name = score.name
    return f"{name} (%)" if score.is_share else name


def _short(text: str) -> str:
    """The text, cut where it would run into the next panel."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
