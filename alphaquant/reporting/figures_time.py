"""Figure of where time went: a bar per stage, cut into its steps, with its physical floor, and the same by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alphaquant.clock import Step
from alphaquant.reporting.notation import number
from alphaquant.reporting.style import even_ticks, new_figure
from alphaquant.store.profile import StageProfile
from alphaquant.store.stage import OTHER
from alphaquant.work import Spent

# what belongs together looks alike: files grey, passes blue, factors green, roundings from yellow to wine
STEP_COLOUR: dict[Step, str] = {
    "text": "#999999",
    "build": "#888888",
    "load weights": "#BBBBBB",
    "forward": "#56B4E9",
    "forward and Hessians": "#0072B2",
    "original's blocks": "#88CCEE",
    "backward": "#332288",
    "rotation": "#44AA99",
    "factor": "#009E73",
    "scale search": "#F0E442",
    "columns": "#E69F00",
    "refinement": "#D55E00",
    "learned rounding": "#DDCC77",
    "channel scales": "#AA4499",
    "correction": "#CC6677",
    "tuning": "#CC79A7",
    "errors": "#882255",
    "spectrum": "#117733",
    "moments": "#999933",
    "null": "#DDDD99",
    "scores": "#1B4F72",
    "intervals": "#AAAA00",
    "tasks": "#661100",
    "pack": "#6699CC",
    "write": "#777777",
    "report": "#AA7744",
}
_REST = "#E8E8E8"
_SMALL = 0.01  # share of all seconds below which a step has no colour of its own
_WITH_STRIP = 2  # blocks that a strip needs
_EDGE: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5}


def time_figure(profiles: Sequence[StageProfile]) -> Figure:
    """Stages as stacked bars on one axis of seconds; below, the blocks of the slowest stage that has some."""
    total = sum(profile.seconds for profile in profiles)
    steps = [step for step in get_args(Step) if _sum(profiles, step) >= _SMALL * total]
    blocks = max(
        (p for p in profiles if len(p.blocks) >= _WITH_STRIP),
        key=lambda profile: profile.seconds,
        default=None,
    )
    height = 0.34 * len(profiles) + 1.0
    figure = new_figure(height + 1.1 + (2.3 if blocks else 0))
    if blocks is None:
        _stages(figure.subplots(), profiles, steps)
    else:
        upper, lower = figure.subplots(2, 1, height_ratios=(height, 2.3))
        _stages(upper, profiles, steps)
        _strip(lower, blocks, steps)
    _legend(figure, profiles, steps)
    return figure


def _sum(profiles: Sequence[StageProfile], step: Step) -> float:
    return sum(profile.steps.get(step, Spent()).seconds for profile in profiles)


def _stages(axis: Axes, profiles: Sequence[StageProfile], steps: Sequence[Step]) -> None:
    longest = max(profile.seconds for profile in profiles)
    for place, profile in enumerate(profiles):
        start = 0.0
        for colour, seconds in _pieces(profile.steps, steps):
            axis.barh(place, seconds, left=start, height=0.68, color=colour, **_EDGE)
            start += seconds
        floor = profile.floor(profile.steps)
        if floor:
            _mark(axis, [floor, floor], [place - 0.42, place + 0.42])
        words = f"{number(profile.seconds)} s"
        words += f", floor {number(floor, 2)} s" if floor else ""
        axis.text(start + 0.008 * longest, place, words, va="center", fontsize=8)
    axis.set_yticks(range(len(profiles)), [profile.name for profile in profiles])
    axis.set_ylim(len(profiles) - 0.4, -0.6)
    axis.set_xlim(0, 1.22 * longest)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("seconds")


def _strip(axis: Axes, profile: StageProfile, steps: Sequence[Step]) -> None:
    for place, block in enumerate(profile.blocks):
        start = 0.0
        for colour, seconds in _pieces(block, steps):
            axis.bar(place, seconds, bottom=start, width=0.8, color=colour, **_EDGE)
            start += seconds
        if floor := profile.floor(block):
            _mark(axis, [place - 0.46, place + 0.46], [floor, floor])
    axis.set_xticks(even_ticks(len(profile.blocks)))
    axis.set_xlim(-0.6, len(profile.blocks) - 0.4)
    axis.set_ylim(bottom=0)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("seconds")
    axis.set_xlabel("block")
    axis.set_title(f"{profile.name}, by block")


def _pieces(spent: Mapping[str, Spent], steps: Sequence[Step]) -> list[tuple[str, float]]:
    """Colours and seconds in the order of the steps, and the rest behind them."""
    pieces = [(STEP_COLOUR[s], spent[s].seconds) for s in steps if s in spent]
    rest = sum(s.seconds for s in spent.values()) - sum(seconds for _, seconds in pieces)
    return [*pieces, (_REST, max(0.0, rest))]


def _mark(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axis.plot(x, y, color="black", linewidth=1.6, solid_capstyle="butt")


def _legend(figure: Figure, profiles: Sequence[StageProfile], steps: Sequence[Step]) -> None:
    handles: list[Patch | Line2D] = [Patch(color=STEP_COLOUR[s], label=s) for s in steps]
    handles.append(Patch(color=_REST, label=f"{OTHER} and small steps"))
    if any(profile.floor(profile.steps) for profile in profiles):
        handles.append(Line2D([], [], color="black", linewidth=1.6, label="physical floor"))
    columns = int(np.ceil(len(handles) / np.ceil(len(handles) / 6)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.2)
