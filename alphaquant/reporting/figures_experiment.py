"""Figures of an experiment: every arm at the same bits, and bits against what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from alphaquant.algorithms.arms import ARMS, ArmName, Kind
from alphaquant.evaluation.paired import Comparison
from alphaquant.reporting.experiment_tables import ExperimentInputs, title_of
from alphaquant.reporting.style import ACCENT, AFTER, BEFORE, new_figure, plain_log
from alphaquant.reporting.sweep import COST, front

KINDS: dict[Kind, tuple[str, str]] = {
    "blind": (BEFORE, "no alpha, no calibration"),
    "alpha": (ACCENT, "alpha alone"),
    "control": ("#E6A57E", "alpha spoilt (controls)"),
    "measured": (AFTER, "calibration alone"),
    "both": ("#009E73", "calibration and alpha"),
}
_CURVES = {"fisher": (AFTER, "o"), "low": (ACCENT, "v"), "high": ("#882255", "^")}


def arms_figure(inputs: ExperimentInputs, comparison: Comparison, results: pd.DataFrame) -> Figure:
    """One row per arm, best first: mean KL with its interval, single plans as small dots."""
    names = sorted(inputs.arms(), key=lambda name: comparison.mean(name).value)
    figure = new_figure(0.34 * len(names) + 1.5)
    axis = figure.subplots()
    every = []
    for place, name in enumerate(names):
        colour = KINDS[ARMS[name].kind][0]
        found = comparison.mean(name)
        single = results[(results["arm"] == name) & ~results["front"]]["kl"].to_numpy()
        axis.scatter(single, [place] * len(single), s=13, color=colour, alpha=0.35, linewidths=0)
        if np.isfinite(found.low):
            axis.plot([found.low, found.high], [place, place], color=colour, linewidth=2, zorder=3)
        axis.scatter([found.value], [place], s=44, color=colour, zorder=4)
        every += [found.value, *single]
    if min(every) > 0 and max(every) / min(every) > 4:
        plain_log(axis, "x")
    axis.set_yticks(range(len(names)), [ARMS[name].title for name in names])
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(COST)
    present = {ARMS[name].kind for name in names}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=label)
        for kind, (colour, label) in KINDS.items()
        if kind in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure


def front_figure(results: pd.DataFrame, rivals: Mapping[str, tuple[float, float]]) -> Figure | None:
    """KL over stored bits: uniform formats, mixed plans of three arms, other software's checkpoints.

    `rivals` are bits per weight and KL by name.
    """
    points = results[results["front"]]
    if points.empty:
        return None
    figure = new_figure(5.0)
    axis = figure.subplots()
    formats = points[~points["arm"].isin(list(_CURVES))].sort_values("bits_per_weight")
    axis.scatter(
        formats["bits_per_weight"], formats["kl"], s=52, color=BEFORE, marker="s", zorder=3,
        label="one format for all",
    )  # fmt: skip
    _name_points(axis, formats["arm"], formats["bits_per_weight"], formats["kl"])
    for name, (colour, marker) in _CURVES.items():
        chosen = points[points["arm"] == name].sort_values("bits_per_weight")
        if len(chosen):
            axis.plot(
                chosen["bits_per_weight"], chosen["kl"], color=colour, marker=marker, markersize=6,
                linewidth=1.2, zorder=4, label=f"mixed, {title_of(name)}",
            )  # fmt: skip
    if rivals:
        bits, costs = zip(*rivals.values(), strict=True)
        axis.scatter(
            bits, costs, s=60, color="#000000", marker="*", zorder=5, label="other software"
        )
        _name_points(axis, list(rivals), bits, costs)
    all_bits = [*points["bits_per_weight"], *(bits for bits, _ in rivals.values())]
    all_costs = [*points["kl"], *(cost for _, cost in rivals.values())]
    # plans within the tolerance of one budget are one step of the front
    best = front([round(bits, 2) for bits in all_bits], all_costs)
    axis.step(
        [all_bits[at] for at in best],
        [all_costs[at] for at in best],
        where="post",
        color="#999999",
        linewidth=0.9,
        linestyle=":",
        zorder=1,
        label="Pareto front",
    )
    axis.set_xlabel("stored bits per weight")
    axis.set_ylabel(COST)
    axis.margins(x=0.08, y=0.12)
    if min(all_costs) > 0 and max(all_costs) / min(all_costs) > 4:
        plain_log(axis, "y")
    axis.legend(loc="upper right")
    return figure


_ROOM = 0.4
"""Bits per weight that a point's name takes."""
_Line: TypeAlias = Literal["-", "--", "-.", ":"]
_GUIDES: dict[str, _Line] = {"hill": "-", "hill / null": "--", "farms": "-.", "kurtosis": "-"}
_ENDS = {"low": ACCENT, "high": "#882255"}
_PANELS: tuple[tuple[str, tuple[ArmName, ...], ArmName], ...] = (
    ("alpha alone", ("low", "high"), "variance"),
    ("kurtosis alone", ("kurtosis",), "variance"),
    ("output error × alpha", ("local_alpha",), "local"),
)
"""Title, arms, and the arm that is theirs without a guide."""


def variants_figure(inputs: ExperimentInputs) -> Figure | None:
    """Predicted loss over gamma for every guide and direction, a panel per family of arms."""
    panels = [
        (title, [(name, inputs.of_arm(name)[0].plans[0]) for name in names], base)
        for title, names, base in _PANELS
        if all(inputs.of_arm(name) for name in names)
    ]
    if not panels:
        return None
    figure = new_figure(3.9)
    for axis, (title, arms, base) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, plan in arms:
            _lines(axis, name, plan)
        plain = inputs.of_arm(base)
        if plain and plain[0].plans[0]["predicted_loss"] is not None:
            value = float(plain[0].plans[0]["predicted_loss"])
            axis.axhline(value, color="#777777", linewidth=0.9, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel("gamma (strength of the guide)")
        low, high = axis.get_ylim()
        plain_log(axis, "x", *(("y",) if low > 0 and high / low > 4 else ()))
    figure.axes[0].set_ylabel("predicted loss (nats per token)")
    handles = [
        *(Line2D([], [], color=colour, label=f"{end} first") for end, colour in _ENDS.items()),
        *(
            Line2D([], [], color="#555555", linestyle=style, label=name)
            for name, style in _GUIDES.items()
            if name != "kurtosis"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _lines(axis: Axes, arm: str, plan: Mapping[str, Any]) -> None:
    """One line per guide and direction of what an arm tried."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for text, loss in plan["tried"].items():
        guide, _, gamma = text.rpartition(", gamma ")
        end, _, rest = guide.partition(" ")
        if end not in _ENDS:
            end, rest = arm, guide
        lines.setdefault((end, rest), []).append((float(gamma), float(loss)))
        if text == plan["variant"]:
            axis.scatter(
                [float(gamma)],
                [float(loss)],
                s=60,
                facecolors="none",
                edgecolors="#000000",
                zorder=5,
            )
    for (end, guide), points in lines.items():
        gammas, losses = zip(*sorted(points), strict=True)
        style = _GUIDES.get(guide, ":")
        axis.plot(
            gammas, losses, color=_ENDS[end], linestyle=style, marker=".", linewidth=1.3, zorder=3
        )


def _name_points(
    axis: Axes, names: Iterable[str], xs: Iterable[float], ys: Iterable[float]
) -> None:
    """Write names to the right of points, to the left where another one is near."""
    points = sorted(zip(xs, ys, names, strict=True))
    for place, (x, y, name) in enumerate(points):
        crowded = place + 1 < len(points) and points[place + 1][0] - x < _ROOM
        axis.annotate(
            str(name),
            (x, y),
            xytext=(-8 if crowded else 8, 0),
            textcoords="offset points",
            ha="right" if crowded else "left",
            va="center",
            fontsize=8,
            color="#444444",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=6,
        )
