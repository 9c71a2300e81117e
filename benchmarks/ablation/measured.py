"""What was measured, as one long table that the page and the figure are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks.ablation.recipes import Row
from benchmarks.rivals.own import needs_run
from benchmarks.rivals.paired import geometric_mean, kl_ratio_of_draws
from benchmarks.rivals.standing import standing
from benchmarks.rivals.table import Result

Draws = Mapping[int, Result]
"""Results of one cell by calibration seed."""
Cells = Mapping[tuple[str, str, str], Draws]
"""By model, name of the format and name of the row."""


def long_table(cells: Cells, rows: Iterable[Row]) -> pd.DataFrame:
    """One line per cell and text: KL and its ratio to the recipe's over all draws, seconds.

    `kl` is the geometric mean over the cell's draws; `ratio`, with its 95 % interval over windows, that over the
    draws that its recipe has too, which are the `seeds`, and `ratios` are those of each. `why` is the first failure. A
    cell that failed with every seed has one line, without text. Where the recipe has no result, there are no seeds and
    ratios are NaN.
    """
    found = []
    for row in rows:
        for (model, name, of), draws in cells.items():
            if of == row.name:
                found += _lines(draws, row, cells.get((model, name, row.base), {}))
    return pd.DataFrame(found, columns=_COLUMNS)


_COLUMNS = [
    *("model", "format", "group_size", "base", "row", "ingredient", "state", "why"),
    *("text", "standing", "seeds", "kl", "ratios", "ratio", "ratio_low", "ratio_high"),
    *("seconds", "seconds_ratio"),
]


def _lines(draws: Draws, row: Row, base: Draws) -> list[dict[str, object]]:
    done, of = _done(draws), _done(base)
    first = next(iter((done or draws).values()))
    seconds = _seconds(done)
    cell = {
        "model": first.model,
        "format": first.format.name,
        "group_size": first.format.group,
        "base": row.base,
        "row": row.name,
        "ingredient": row.ingredient,
        "state": first.outcome["state"],
        "why": _why(draws),
        "seconds": seconds,
        "seconds_ratio": seconds / whole if seconds and (whole := _seconds(of)) else None,
    }
    shared = [seed for seed in done if seed in of]
    return [cell | _scored(done, of, shared, text) for text in first.kl] or [cell]


def _done(draws: Draws) -> Draws:
    return {seed: one for seed, one in draws.items() if one.outcome["state"] == "done"}


def _why(draws: Draws) -> str:
    """The first failure, and with which seed it was where others had none."""
    failed = {seed: one for seed, one in draws.items() if one.outcome["state"] != "done"}
    if not failed:
        return ""
    seed, first = next(iter(failed.items()))
    why = str(first.outcome.get("why", ""))
    return why if len(failed) == len(draws) else f"seed {seed}: {why}"


def _scored(done: Draws, base: Draws, shared: Sequence[int], text: str) -> dict[str, object]:
    model = next(iter(done.values())).model
    pairs = [(done[seed].kl[text], base[seed].kl[text]) for seed in shared]
    ratio = kl_ratio_of_draws(pairs)
    return {
        "text": text,
        "standing": standing(model, text),
        "seeds": shared,
        "kl": geometric_mean(one.value(text, "kl_mean") for one in done.values()),
        "ratios": [sum(ours) / sum(theirs) for ours, theirs in pairs],
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def _seconds(done: Draws) -> float | None:
    """Median seconds that ratios are taken of; None where cells had to run stages that have nothing to do with it."""
    spent = [one.spent for one in done.values() if not needs_run(one.contestant)]
    return float(np.median(spent)) if spent else None
