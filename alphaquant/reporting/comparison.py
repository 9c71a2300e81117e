"""Rounding methods side by side: what each loses and how long it takes, as a table and on one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alphaquant.reporting.style import ROLE_STYLE, drawing, new_figure, plain_log, png

COLUMNS = [
    "method",
    "format",
    "bits_per_weight",
    "kl",
    "kl_low",
    "kl_high",
    "perplexity",
    "perplexity_original",
    "top1_agreement",
    "seconds",
    "device",
    "status",
    "error",
]
_STYLES = tuple(dict.fromkeys(ROLE_STYLE.values()))


def comparison_png(table: pd.DataFrame) -> bytes | None:
    """KL with its interval and seconds of every method, one row each, as PNG bytes; None when nothing was measured."""
    measured = table.dropna(subset=["kl"])
    if measured.empty:
        return None
    with drawing():
        return png(_figure(measured))


def _figure(table: pd.DataFrame) -> Figure:
    order = table.groupby("method")["kl"].min().sort_values(ascending=False).index
    places = {method: place for place, method in enumerate(order)}
    figure = new_figure(0.42 * len(places) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for number, (name, rows) in enumerate(table.groupby("format", sort=False)):
        colour, marker = _STYLES[number % len(_STYLES)]
        at = [places[method] for method in rows["method"]]
        bits = float(rows["bits_per_weight"].iloc[0])
        low, high = (rows[column].fillna(rows["kl"]) for column in ("kl_low", "kl_high"))
        left.hlines(at, low, high, color=colour, linewidth=2, alpha=0.5)
        looks: dict[str, Any] = {"color": colour, "marker": marker, "s": 48, "zorder": 3}
        left.scatter(rows["kl"], at, label=f"{name} ({bits:.3f} bits per weight)", **looks)
        right.scatter(rows["seconds"], at, **looks)
    left.set_yticks(range(len(places)), list(places))
    left.set_ylim(-0.6, len(places) - 0.4)
    left.set_xlabel("mean token KL to the original (nats per token), 95 % interval")
    right.set_xlabel("time of quantization (s)")
    for axis, column in ((left, "kl"), (right, "seconds")):
        _scale(axis, table[column].dropna().to_numpy("float64"))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _scale(axis: Axes, values: np.ndarray[Any, Any]) -> None:
    axis.margins(x=0.1)
    if values.size and values.min() > 0 and values.max() / values.min() > 4:
        plain_log(axis, "x")
    elif values.size:
        axis.set_xlim(left=0)


def comparison_markdown(model: str, table: pd.DataFrame, figure: str | None) -> str:
    """Title, picture and one row per method and format; the best KL of each format is bold."""
    lines = [f"# {model}: methods of rounding", ""]
    if figure:
        lines += [f"![KL to the original and time by method]({figure})", ""]
    lines += [
        "| method | format | bits per weight | KL (nats per token) | 95 % interval | perplexity | same top token | seconds |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    rivals = table.dropna(subset=["kl"]).groupby("format")["kl"]
    best = set(rivals.idxmin()[rivals.size() > 1])
    several = table["device"].nunique() > 1
    for place, row in table.iterrows():
        if isinstance(row["error"], str):
            reason = row["error"].replace("|", "/").replace("\n", " ")
            lines.append(f"| {row['method']} | {row['format']} | failed: {reason} | | | | | |")
            continue
        kl = number(row["kl"], "#.3g")
        where = f" ({row['device']})" if several and isinstance(row["device"], str) else ""
        cells = [
            row["method"],
            row["format"],
            number(row["bits_per_weight"], ".3f"),
            f"**{kl}**" if place in best else kl,
            " to ".join(number(row[end], "#.3g") for end in ("kl_low", "kl_high")),
            number(row["perplexity"], "#.4g"),
            number(row["top1_agreement"], ".1%"),
            number(row["seconds"], ".1f") + where,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    original = table["perplexity_original"].dropna()
    lines += ["", "Bold: the lowest KL of a format. Seconds are those of quantization alone."]
    if several:
        lines.append("Some are of results found in the store: compare those of one device only.")
    if len(original):
        lines.append(f"Perplexity of the original: {original.iloc[0]:#.4g}.")
    return "\n".join(lines) + "\n"


def number(value: Any, form: str) -> str:
    """A number as a cell shows it; a dash where it is not known."""
    return "–" if value is None or not np.isfinite(value) else format(float(value), form)
