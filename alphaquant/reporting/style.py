"""How figures look: one palette, one type size, one way to PNG bytes, the same on every machine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from alphaquant.reporting.statistics import Floats

DPI = 160
WIDTH = 10.0
"""Inches; every figure has this width, so that type has one size on the page."""

# Okabe and Ito's palette (and Tol's wine), which stays apart under the common colour blindnesses;
# a marker of its own makes each role readable in grey too
ROLE_STYLE: dict[str, tuple[str, str]] = {
    "q": ("#0072B2", "o"),
    "k": ("#56B4E9", "s"),
    "v": ("#009E73", "D"),
    "q_a": ("#0072B2", "<"),
    "kv_a": ("#56B4E9", ">"),
    "q_b": ("#332288", "h"),
    "kv_b": ("#009E73", "d"),
    "o": ("#CC79A7", "^"),
    "gate": ("#E69F00", "o"),
    "up": ("#D55E00", "v"),
    "down": ("#882255", "P"),
    "router": ("#000000", "X"),
    "lm_head": ("#777777", "*"),
    "other": ("#117733", "d"),
    "gate_up": ("#D55E00", "h"),
    "qkv": ("#009E73", "p"),
}
BEFORE, AFTER, ACCENT = "#777777", "#0072B2", "#D55E00"
SEQUENTIAL = "viridis"
MOST_POINTS = 6000
"""Points that a scatter draws."""

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with these settings and no user's matplotlibrc, then put back what was there."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def new_figure(height: float) -> Figure:
    """An empty page-wide figure, `height` inches high."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, equal for equal figures: no date and no program version inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def role_style(role: str) -> tuple[str, str]:
    """Colour and marker of a role."""
    return ROLE_STYLE.get(role, ("#777777", "o"))


def role_legend(figure: Figure, roles: list[str]) -> None:
    """A legend of roles below the whole figure, where it can cover nothing."""
    handles = [
        Line2D([], [], linestyle="", marker=role_style(r)[1], color=role_style(r)[0], label=r)
        for r in roles
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, len(handles)), handletextpad=0.2
    )


def role_points(axis: Axes, x: Floats, y: Floats, of_role: NDArray[np.str_]) -> None:
    """Scatter with each role's colour and marker; of very many points a random choice is drawn.

    Points are laid down in random order, so that no role covers another.
    """
    order = np.random.default_rng(0).permutation(x.size)[:MOST_POINTS]
    size = float(np.clip(450 / np.sqrt(max(order.size, 1)), 5, 36))
    for chunk in np.array_split(order, 8 if order.size > 200 else 1):
        for role in sorted(set(of_role[chunk])):
            chosen = chunk[of_role[chunk] == role]
            colour, marker = role_style(role)
            axis.scatter(
                x[chosen],
                y[chosen],
                s=size,
                color=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0,
                zorder=2,
            )


def plain_log(axis: Axes, *which: str) -> None:
    """Log axes with ticks as people write them; to be called once everything is drawn."""
    for name in which:
        (axis.set_xscale if name == "x" else axis.set_yscale)("log")
        one = axis.xaxis if name == "x" else axis.yaxis
        low, high = one.get_view_interval()
        if high < 50 * low:
            one.set_major_locator(FixedLocator(_between(low, high)))
            one.set_minor_locator(NullLocator())
        one.set_major_formatter(FuncFormatter(lambda value, _: _decimal(value)))


def even_ticks(amount: int) -> range:
    """At most 16 of 0 .. amount - 1, a power of two apart."""
    step = 1
    while -(-amount // step) > 16:
        step *= 2
    return range(0, amount, step)


def _between(low: float, high: float) -> list[float]:
    """Round numbers of a log axis that spans less than two decades."""
    ratio = high / low
    leads: tuple[float, ...] = (1, 2, 5) if ratio > 12 else (1, 1.5, 2, 3, 4, 6, 8)
    if ratio < 6:
        leads = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [lead * 10.0**power for power in powers for lead in leads]


def _decimal(value: float) -> str:
    """0.05 as it is, and powers of ten where the zeros would have to be counted."""
    if value >= 0.99e-3:
        return f"{value:.6g}"
    lead, power = f"{value:.1e}".split("e")
    factor = "" if lead == "1.0" else rf"{float(lead):g}\times "
    return rf"${factor}10^{{{int(power)}}}$"
