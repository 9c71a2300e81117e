"""Figure of what consumers make of a checkpoint and of its original: bytes, memory, tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alphaquant.reporting.style import AFTER, BEFORE, new_figure
from alphaquant.sizes import unit_of


def serving(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of medians with a line from the lowest to the highest repeat; the original is grey.

    `entries` are those of `alphaquant.serving.measure.summaries`. Below each name stands what was multiplied with, for
    decoded weights are as fast as those that they were decoded to.
    """
    order = sorted(entries, key=lambda entry: entry["model"] != "original")
    on_device = any(entry["device_peak_bytes"] for entry in order)
    memory = "device_peak_bytes" if on_device else "peak_bytes"
    most = max(_ends(entry, memory)[2] for entry in order)
    unit, name = unit_of(most)
    panels = (
        ("bytes_on_disk", f"weights on disk ({name})", unit),
        (memory, f"peak memory{' of the device' * on_device} ({name})", unit),
        ("prefill", "reading the prompt (tokens/s)", 1),
        ("decode", "writing (tokens/s)", 1),
    )
    figure = new_figure(0.62 * len(order) + 1.2)
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (metric, label, scale) in zip(axes, panels, strict=True):
        _bars(axis, order, metric, scale)
        axis.set_xlabel(label)
        axis.margins(x=0.2)
        axis.grid(visible=False, axis="y")
    names = [f"{e['model']}, {e['consumer']}\n{e['computed_with']}" for e in order]
    axes[0].set_yticks(np.arange(len(order)), names)
    axes[0].set_ylim(len(order) - 0.45, -0.55)
    return figure


def _bars(axis: Axes, order: Sequence[Mapping[str, Any]], metric: str, scale: float) -> None:
    for place, entry in enumerate(order):
        low, middle, high = (value / scale for value in _ends(entry, metric))
        colour = BEFORE if entry["model"] == "original" else AFTER
        axis.barh(place, middle, height=0.6, color=colour)
        if high > low:
            axis.plot([low, high], [place, place], color="black", linewidth=1.2)
        axis.annotate(
            f"{middle:.3g}" if middle < 1000 else f"{middle:,.0f}",
            (high, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _ends(entry: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
    """Lowest, median and highest; 0 for what was not measured."""
    found = entry[metric]
    if isinstance(found, Mapping):
        return found["low"], found["median"], found["high"]
    return (found or 0,) * 3
