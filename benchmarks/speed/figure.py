"""Two pictures: time and memory of every program beside the aim, and how the stages' cost grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alphaquant.reporting.style import ACCENT, drawing, new_figure, plain_log, png
from benchmarks.speed.page import OWN, PARTS, ratios
from benchmarks.speed.runs import Run
from benchmarks.speed.scaling import AXES, STAGES

_RIVAL = "#9A9A9A"
_MEASURES = (
    ("seconds", 1.0, "seconds of the work, by the clock"),
    ("cpu_seconds", 1.0, "CPU seconds of the work"),
    ("above_bytes", 2.0**20, "MiB above the bare interpreter"),
)
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def draw(runs: Sequence[Run]) -> bytes:
    """PNG: a row per case, a bar per program, a panel per measure; the line is the aim."""
    table = ratios(runs)
    cases = list(table.groupby(["part", "case"], sort=False))
    heights = [len(group) for _, group in cases]
    with drawing():
        figure = new_figure(0.34 * sum(heights) + 0.75 * len(cases) + 0.6)
        grid = figure.subplots(
            len(cases),
            len(_MEASURES),
            squeeze=False,
            gridspec_kw={"height_ratios": [height + 0.8 for height in heights]},
        )
        for row, ((part, case), group) in zip(grid, cases, strict=True):
            about = PARTS[part]
            for axis, (column, unit, words), aim in zip(
                row, _MEASURES, (about.time, about.time, about.memory), strict=True
            ):
                _bars(axis, group, column, unit, aim)
                if axis is not row[0]:
                    axis.set_yticklabels([])
                if axis in grid[-1]:
                    axis.set_xlabel(words)
            title = row[0].set_title(f"{about.title}: {case}", loc="left")
            title.set_in_layout(False)  # it may reach over the next panel
        handles = [
            Patch(color=ACCENT, label=OWN),
            Patch(color=_RIVAL, label="others"),
            Line2D([], [], color="#000000", linewidth=1.1, label="aim: AlphaQuant at most here"),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        return png(figure)


def _bars(axis: Axes, group: pd.DataFrame, column: str, unit: float, aim: float | None) -> None:
    values = group[column].to_numpy(float) / unit
    own = (group["program"] == OWN).to_numpy()
    places = np.arange(len(group))
    axis.barh(places, values, color=np.where(own, ACCENT, _RIVAL), height=0.72)
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            f"{value:.3g}" if value < 100 else f"{value:.0f}",
            (max(value, 0.0), place),
            xytext=(3, 0),
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # the aim may cross it
            va="center",
            fontsize=8.5,
        )
    if aim is not None and not own.all():
        rivals = group[~own]
        faster = rivals.sort_values("seconds").iloc[0]
        axis.axvline(aim * faster[column] / unit, color="#000000", linewidth=1.1)
    names = [f"{row.program}, {row.setting}" for row in group.itertuples()]
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, 1.16 * float(values.max()))


def draw_scaling(table: pd.DataFrame, slopes: pd.DataFrame) -> bytes:
    """PNG: a panel per quantity with its slopes above, a line per stage; the grey line is linear."""
    with drawing():
        figure = new_figure(7.0)
        panels = list(figure.subplots(2, 2).flat)
        for axis, name in zip(panels, AXES, strict=True):
            part, own = table[table["axis"] == name], slopes[slopes["axis"] == name]
            for stage, (colour, mark) in zip(STAGES, _STYLES, strict=True):
                line = part[part["stage"] == stage]
                axis.plot(line["value"], line["seconds"], color=colour, marker=mark, markersize=4.5)
            ends = np.array([part["value"].min(), part["value"].max()], dtype=float)
            start = 2.5 * float(part["seconds"].max()) * ends[0] / ends[1]
            axis.plot(ends, start * ends / ends[0], color="#999999", linestyle="--")
            told = ", ".join(f"{row.stage} {row.slope:.2f}" for row in own.itertuples())
            axis.set_title(f"slopes: {told}", loc="left", fontsize=9)
            axis.set_xlabel({"tokens": "calibration and evaluation tokens"}.get(name, name))
            axis.set_ylabel("CPU seconds")
            plain_log(axis, "x", "y")
            axis.set_xticks(list(AXES[name].values), [f"{value:,}" for value in AXES[name].values])
            axis.minorticks_off()
        handles = [
            Line2D([], [], color=colour, marker=mark, markersize=4.5, label=stage)
            for stage, (colour, mark) in zip(STAGES, _STYLES, strict=True)
        ]
        handles.append(Line2D([], [], color="#999999", linestyle="--", label="linear"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        return png(figure)
