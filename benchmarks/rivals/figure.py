"""The comparison as one picture: divergence against time, a panel per model and format."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from alphaquant.reporting.style import ACCENT, drawing, new_figure, plain_log, png
from benchmarks.rivals.catalogue import OWN
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.table import BAR, Result

_COLOURS = {
    OWN: ACCENT,
    "gptqmodel": "#0072B2",
    "llmcompressor": "#009E73",
    "autoround": "#CC79A7",
}
_MARKERS = "osD^vPX*<>hpd"
_ROW = 2.6
"""Inches."""
AIM = (0.5, 0.8)
"""Share of AutoRound's seconds and of its divergence that AlphaQuant is to reach."""


def draw(results: Sequence[Result], texts: dict[str, str]) -> bytes:
    """PNG; divergence is that on the held-out text that `texts` names for a model. Lower left is better."""
    done = [result for result in results if result.outcome["state"] == "done" and result.scores]
    models = list(dict.fromkeys(result.model for result in done))
    names = [name for name in FORMATS if any(result.format.name == name for result in done)]
    keys = sorted({result.contestant.key for result in done})
    style = {
        key: (_COLOURS[key.partition(":")[0]], _MARKERS[i % len(_MARKERS)])
        for i, key in enumerate(keys)
    }
    took = [result.spent for result in done]
    on_gpu = any(result.outcome.get("device", "cpu") != "cpu" for result in done)
    unit = "seconds" if on_gpu else "CPU seconds"
    seconds = (min(took) / 1.6, max(took) * 1.6)
    with drawing():
        figure = new_figure(_ROW * len(models) + 1.1)
        axes = figure.subplots(len(models), len(names), squeeze=False)
        for row, model in zip(axes, models, strict=True):
            for axis, name in zip(row, names, strict=True):
                panel = [r for r in done if (r.model, r.format.name) == (model, name)]
                if not panel:
                    axis.set_axis_off()
                    continue
                _panel(axis, panel, texts[model], style, seconds)
                axis.set_title(f"{model}, {panel[0].format.label}")
                axis.set_xlabel(unit)
        figure.supylabel("KL to the original, nats per token", fontsize=9.5)
        titles = {r.contestant.key: f"{r.contestant.title}, {r.contestant.setting}" for r in done}
        handles = [
            Line2D([], [], linestyle="", marker=m, color=c, label=titles[key])
            for key, (c, m) in style.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2)
        return png(figure)


def _panel(
    axis: Axes,
    panel: Sequence[Result],
    text: str,
    style: dict[str, tuple[str, str]],
    seconds: tuple[float, float],
) -> None:
    for result in panel:
        colour, marker = style[result.contestant.key]
        kl, spent = result.value(text, "kl_mean"), result.spent
        low, high = result.interval(text, "kl_mean")
        if not math.isnan(low):
            axis.plot([spent, spent], [low, high], color=colour, linewidth=1.2, zorder=2)
        axis.plot(
            spent,
            kl,
            marker,
            color=colour,
            markersize=7 if result.contestant.rival == OWN else 5.5,
            markeredgecolor="black" if result.contestant.rival == OWN else colour,
            markeredgewidth=0.8,
            zorder=3,
        )
    axis.set_xlim(seconds)
    bar = next((result for result in panel if result.contestant.key == BAR), None)
    if bar is not None:
        _aim(axis, bar.spent * AIM[0], bar.value(text, "kl_mean") * AIM[1])
    plain_log(axis, "x", "y")


def _aim(axis: Axes, seconds: float, kl: float) -> None:
    """Shade where the aim is reached, down to somewhat below the lowest point."""
    points = [float(y) for line in axis.lines for y in line.get_ydata()]  # type: ignore[union-attr]
    bottom = min([*points, kl]) / 1.25
    left = axis.get_xlim()[0]
    axis.set_ylim(bottom, max(points) * 1.25)
    axis.fill_between([left, seconds], bottom, kl, color="#FFE9B8", zorder=0, linewidth=0)
