"""A sweep on one picture and in one table: what every point stores, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alphaquant.reporting.style import ACCENT, ROLE_STYLE, drawing, new_figure, plain_log, png

COST = "mean token KL to the original (nats per token)"
_STYLES = tuple(dict.fromkeys(ROLE_STYLE.values()))


def front(bits: list[float], costs: list[float]) -> list[int]:
    """Positions of the points that no other point beats in both bits and cost, by rising bits."""
    best, found = float("inf"), []
    for place in sorted(range(len(bits)), key=lambda at: (bits[at], costs[at])):
        if costs[place] < best:
            best = costs[place]
            found.append(place)
    return found


def sweep_png(table: pd.DataFrame) -> bytes | None:
    """Cost over bits per weight, as PNG bytes; None when no point was scored.

    `table` has `point`, `series` (what tells colours apart), `short` (a label), `bits_per_weight` and `kl`.
    """
    scored = table.dropna(subset=["bits_per_weight", "kl"])
    if scored.empty:
        return None
    with drawing():
        return png(_figure(scored))


def _figure(table: pd.DataFrame) -> Figure:
    figure = new_figure(5.0)
    axis = figure.subplots()
    bits, costs = list(table["bits_per_weight"]), list(table["kl"])
    best = front(bits, costs)
    axis.plot(
        [bits[at] for at in best],
        [costs[at] for at in best],
        color=ACCENT,
        linewidth=1.2,
        zorder=2,
        label="best of this sweep",
    )
    names = sorted(table["series"].unique())
    for number, name in enumerate(names):
        colour, marker = _STYLES[number % len(_STYLES)]
        chosen = table[table["series"] == name]
        axis.scatter(
            chosen["bits_per_weight"],
            chosen["kl"],
            s=48,
            color=colour,
            marker=marker,
            zorder=3,
            label=name,
        )
    for row in table.to_dict("records"):
        axis.annotate(
            str(row["short"]),
            (row["bits_per_weight"], row["kl"]),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
            color="#444444",
        )
    axis.set_xlabel("stored bits per weight")
    axis.set_ylabel(COST)
    axis.margins(x=0.08, y=0.12)
    if min(costs) > 0 and max(costs) / min(costs) > 4:
        plain_log(axis, "y")
    axis.legend(loc="upper right")
    return figure


def sweep_markdown(title: str, table: pd.DataFrame, figure: str | None) -> str:
    """Title, picture and one row per point; points on the front are bold."""
    scored = table.dropna(subset=["bits_per_weight", "kl"])
    best = {
        scored["point"].iloc[at]
        for at in front(list(scored["bits_per_weight"]), list(scored["kl"]))
    }
    lines = [f"# {title}", ""]
    if figure:
        lines += [f"![{COST} over stored bits per weight]({figure})", ""]
    lines += [
        "| point | bits per weight | KL (nats per token) | perplexity | same top token | state |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in table.to_dict("records"):
        name = f"**{row['point']}**" if row["point"] in best else str(row["point"])
        failed = isinstance(row["error"], str)  # a table may hold NaN for None
        state = f"failed: {row['error']}" if failed else str(row["status"])
        cells = [
            name,
            _number(row["bits_per_weight"], ".3f"),
            _number(row["kl"], "#.3g"),
            _number(row["perplexity"], "#.4g"),
            _number(row["top1_agreement"], ".1%"),
            state.replace("|", "/").replace("\n", " "),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Bold: no other point has both fewer bits and a lower KL."]
    return "\n".join(lines) + "\n"


def _number(value: Any, form: str) -> str:
    return "" if value is None or not np.isfinite(value) else format(float(value), form)
