"""The page: a table per case with ratios to the faster rival and the aims, what alphas agree on, and slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from benchmarks.speed.models import DESIGNS, described
from benchmarks.speed.quantize import PLAIN, TUNED
from benchmarks.speed.runs import Run, medians

OWN = "AlphaQuant"


class Part(NamedTuple):
    """One comparison."""

    title: str
    words: str
    time: float
    """Most that our time may be of the faster rival's."""
    memory: float | None = None
    """The same of memory above the bare interpreter's."""


PARTS = {
    "alpha": Part(
        "Alpha of every linear",
        "Reading included for us, who stream, and left out for WeightWatcher, which is handed a model in memory.",
        1 / 2,
    ),
    "quantize": Part(
        "Quantization to int4 in groups of 128",
        "`seconds` are those of the quantizing call: for us the stages up to `quantize`, the store and reading a text included; our CPU seconds count the export, too.",
        1 / 3,
        1 / 2,
    ),
    "memory": Part(
        "Memory on a deeper model",
        "The block is that of the Llama above, 40 times, and there are fewer windows: what grows is what a program keeps of a model.",
        1 / 3,
        1 / 2,
    ),
    "tuned": Part(
        "Tuning blocks after quantization to int4 in groups of 128",
        "AutoRound makes 200 iterations per block, its default.",
        1 / 2,
    ),
}
_COLUMNS = (
    "program",
    "setting",
    "repeats",
    "seconds",
    "CPU s",
    "whole process, s",
    "its CPU s",
    "MiB above bare",
    "time to the faster rival's",
    "CPU to its",
    "memory to its",
)


def ratios(runs: Sequence[Run]) -> pd.DataFrame:
    """Medians with `time_ratio`, `cpu_ratio` and `memory_ratio` of our rows to the faster rival of their case."""
    table = medians(runs)
    for name in ("time_ratio", "cpu_ratio", "memory_ratio"):
        table[name] = float("nan")
    for _, group in table.groupby(["part", "case"], sort=False):
        own = group["program"] == OWN
        if own.all():
            continue
        rival = group[~own].sort_values("seconds").iloc[0]
        ours = group.index[own]
        for name, column in (
            ("time_ratio", "seconds"),
            ("cpu_ratio", "cpu_seconds"),
            ("memory_ratio", "above_bytes"),
        ):
            table.loc[ours, name] = table.loc[ours, column] / rival[column]
    return table


def page(
    runs: Sequence[Run],
    preface: str,
    agreement: pd.DataFrame | None,
    slopes: pd.DataFrame | None,
) -> str:
    """Markdown of everything that is known."""
    parts = ["# Speed and memory beside other programs, on the CPU", preface]
    table = ratios(runs) if runs else pd.DataFrame()
    if len(table):
        parts += ["![](speed.png)"]
    for part, about in PARTS.items():
        if table.empty or not (table["part"] == part).any():
            continue
        parts += [f"## {about.title}", f"Aim: {_aim(about)}. {about.words}"]
        for case, group in table[table["part"] == part].groupby("case", sort=False):
            parts += [f"### {case}", described(DESIGNS[str(case).partition(",")[0]])]
            parts += ["\n".join(_rows(group, about))]
        parts.append(_settings(table[table["part"] == part]))
        if part == "alpha" and agreement is not None:
            parts.append(_agreement_words(agreement))
    failed = [f"- {run.program}, {run.case}: {run.failed}" for run in runs if run.failed]
    if failed:
        parts += ["## Failures", "\n".join(failed)]
    if slopes is not None:
        parts += ["## How cost grows", _slope_words(slopes), "![](speed-scaling.png)"]
        parts.append("\n".join(_slope_rows(slopes)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _aim(about: Part) -> str:
    words = f"at most {about.time:.2g} of the faster rival's time"
    return words + (f" and {about.memory:.2g} of its memory" if about.memory else "")


def _rows(group: pd.DataFrame, about: Part) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"| --- | --- |{' ---: |' * (len(_COLUMNS) - 2)}"]
    for row in group.itertuples():
        cells = [
            row.program,
            row.setting,
            str(row.repeats),
            *(f"{value:.1f}" for value in (row.seconds, row.cpu_seconds, row.wall, row.cpu)),
            f"{row.above_bytes / 2**20:.0f}",
            _ratio(row.time_ratio, about.time),
            _ratio(row.cpu_ratio, None),
            _ratio(row.memory_ratio, about.memory),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _settings(part: pd.DataFrame) -> str:
    """What the settings of a part are, a line each."""
    lines = [
        f"- {one.title}, {one.setting}: {one.words}."
        for one in (*PLAIN, *TUNED)
        if ((part["setting"] == one.setting) & part["program"].str.startswith(one.title)).any()
    ]
    return "\n".join(lines)


def _ratio(value: float, aim: float | None) -> str:
    """A ratio, bold where it misses its aim."""
    if pd.isna(value):
        return ""
    return f"**{value:.2f}**" if aim is not None and value > aim else f"{value:.2f}"


def _agreement_words(found: pd.DataFrame) -> str:
    names = {
        "spectral_norm": "largest eigenvalue",
        "norm": "sum of eigenvalues",
        "stable_rank": "stable rank",
        "xmin": "eigenvalue at which its tail begins",
        "alpha_same_tail": "alpha at its own tail",
    }
    told = ", ".join(f"{words} {found[name].max():.0e}" for name, words in names.items())
    rank = found["alpha"].corr(found["their_alpha"], method="spearman")
    return (
        f"Largest relative differences over {len(found)} linears: {told}. Its alpha is the same estimator (maximum "
        "likelihood of a power law's exponent) with another tail: it takes the one that fits best, we a tenth of the "
        "eigenvalues; and of n eigenvalues in a tail it divides n by the sum of logarithms, Hill n - 1, which is taken "
        f"out here. Over these linears the two alphas have a rank correlation of {rank:.2f}."
    )


def _slope_words(slopes: pd.DataFrame) -> str:
    beyond = slopes[slopes["faster"]]
    told = ", ".join(
        f"{row.stage} over {row.axis} ({max(row.slope, row.last_slope):.2f})"
        for row in beyond.itertuples()
    )
    return (
        "CPU seconds of one thread, by stage; slope 1 is linear. "
        + (f"Faster than linear (slope above 1.1): {told}. " if told else "")
        + ("" if told else "No stage grows faster than linear in tokens, blocks or experts. ")
        + "Width grows weights with its square and factors with its third power."
    )


def _slope_rows(slopes: pd.DataFrame) -> list[str]:
    lines = [
        "| stage | over | slope of all | between the last two |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in slopes.itertuples():
        last = f"**{row.last_slope:.2f}**" if row.faster else f"{row.last_slope:.2f}"
        lines.append(f"| {row.stage} | {row.axis} | {row.slope:.2f} | {last} |")
    return lines
