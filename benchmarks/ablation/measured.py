"""What was measured, as one long table that the page and the figure are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from benchmarks.ablation.recipes import Row
from benchmarks.rivals.own import needs_run
from benchmarks.rivals.paired import Ratio, kl_ratio
from benchmarks.rivals.standing import standing
from benchmarks.rivals.table import Result

Cells = Mapping[tuple[str, str, str], Result]
"""Results by model, name of the format and name of the row."""


def long_table(cells: Cells, rows: Iterable[Row]) -> pd.DataFrame:
    """One line per cell and text: KL with its interval, its ratio to the recipe's, seconds.

    A failed cell has one line, without text. Ratios are NaN where the recipe has no result.
    """
    found = []
    for row in rows:
        for (model, name, of), result in cells.items():
            if of == row.name:
                found += _lines(result, row, cells.get((model, name, row.base)))
    return pd.DataFrame(found, columns=_COLUMNS)


_COLUMNS = [
    *("model", "format", "group_size", "base", "row", "ingredient", "state", "why"),
    *("text", "standing", "kl", "low", "high", "ratio", "ratio_low", "ratio_high"),
    *("seconds", "seconds_ratio"),
]


def _lines(result: Result, row: Row, base: Result | None) -> list[dict[str, object]]:
    seconds = _seconds(result)
    cell = {
        "model": result.model,
        "format": result.format.name,
        "group_size": result.format.group,
        "base": row.base,
        "row": row.name,
        "ingredient": row.ingredient,
        "state": result.outcome["state"],
        "why": result.outcome.get("why", ""),
        "seconds": seconds,
        "seconds_ratio": seconds / of if seconds and (of := _seconds(base)) else None,
    }
    lines = []
    for text, windows in result.kl.items():
        low, high = result.interval(text, "kl_mean")
        ratio = kl_ratio(windows, base.kl[text]) if base and text in base.kl else Ratio()
        lines.append(
            cell
            | {
                "text": text,
                "standing": standing(result.model, text),
                "kl": result.value(text, "kl_mean"),
                "low": low,
                "high": high,
                "ratio": ratio.value,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
            }
        )
    return lines or [cell]


def _seconds(result: Result | None) -> float | None:
    """Seconds that ratios are taken of; None for a cell that failed, or had to run stages that have nothing to do with it."""
    if result is None or result.outcome["state"] != "done" or needs_run(result.contestant):
        return None
    return result.spent
