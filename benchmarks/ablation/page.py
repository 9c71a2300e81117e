"""The ablation as a page for people: what each ingredient is worth in all, and every cell behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from benchmarks.ablation.recipes import Base, Row
from benchmarks.rivals.paired import geometric_mean
from benchmarks.rivals.standing import standing_words
from benchmarks.rivals.table import markdown_row, short

_STANDINGS = ("tuned on", "held back")
_HEADS: dict[Base, str] = {
    "plain": "## One ingredient alone, or another setting of the plain recipe",
    "one pass": "## Other settings of one pass",
    "full": "## One ingredient left out, or another setting of the full recipe",
}


def page(
    table: pd.DataFrame,
    rows: Sequence[Row],
    models: Mapping[str, str],
    preface: str,
    missing: Sequence[str] = (),
) -> str:
    """Markdown. `table` is of `long_table`; `models` says in words what each is, `missing` what is not kept."""
    scored = table[table["text"].notna()]
    parts = ["# What every ingredient is worth", preface, standing_words(), "![](ablation.png)"]
    for base, head in _HEADS.items():
        own = [row for row in rows if row.base == base]
        if (scored["base"] == base).any():
            parts += [head, _overview(scored, own)]
    parts += ["## Recipes", _recipes(rows)]
    for model, words in models.items():
        parts += [f"## {model}", words, _details(scored[scored["model"] == model])]
    failed = table[table["why"] != ""].drop_duplicates(["model", "format", "row"])
    if len(failed):
        parts += ["## What failed", _failures(failed)]
    if missing:
        parts.append(f"Not computed: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _overview(scored: pd.DataFrame, rows: Sequence[Row]) -> str:
    """Geometric means of ratios over models and texts, by format and standing, of rows that have results.

    With several draws, between their lowest and highest mean.
    """
    formats = list(scored["format"].unique())
    columns = [
        (name, kind)
        for name in formats
        for kind in _STANDINGS
        if ((scored["format"] == name) & (scored["standing"] == kind)).any()
    ]
    header = ["recipe", "what it is", *(f"{name}, {kind}" for name, kind in columns)]
    lines = [_rule(header, 2, "seconds")]
    for row in rows:
        own = scored[scored["row"] == row.name]
        if own.empty:
            continue
        cells = [row.name, row.words]
        for name, kind in columns:
            chosen = own[(own["format"] == name) & (own["standing"] == kind)]
            cells.append(_mean(chosen))
        once = own.drop_duplicates(["model", "format"])
        cells.append(_number(geometric_mean(once["seconds_ratio"].dropna())))
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def _details(scored: pd.DataFrame) -> str:
    header = ["format", "recipe", "text", "standing", "KL", "to the recipe's", "by seed", "seconds"]
    lines = [_rule(header, 4, "to the recipe's")]
    for name in scored["format"].unique():
        for one in scored[scored["format"] == name].to_dict("records"):
            group = "" if name == "mxfp4" else f" g{one['group_size']}"
            lines.append(
                markdown_row(
                    [
                        f"{name}{group}",
                        str(one["row"]),
                        str(one["text"]),
                        str(one["standing"]),
                        short(one["kl"]),
                        _ratio(one["ratio"], one["ratio_low"], one["ratio_high"]),
                        " ".join(f"{ratio:.3f}" for ratio in one["ratios"]),
                        "" if pd.isna(one["seconds"]) else f"{one['seconds']:.1f}",
                        _number(one["seconds_ratio"]),
                    ]
                )
            )
    return "\n".join(lines)


def _recipes(rows: Iterable[Row]) -> str:
    lines = ["| recipe | config |", "|---|---|"]
    for row in rows:
        if not row.ingredient:
            told = ", ".join(f"`{key}={value}`" for key, value in row.settings.items())
            lines.append(markdown_row([row.name, told]))
    return "\n".join(lines)


def _failures(failed: pd.DataFrame) -> str:
    lines = ["| model | format | recipe | why |", "|---|---|---|---|"]
    for one in failed.to_dict("records"):
        why = str(one["why"]).replace("`", "'")
        lines.append(markdown_row([one["model"], one["format"], one["row"], f"`{why}`"]))
    return "\n".join(lines)


def _rule(header: Sequence[str], words: int, last: str) -> str:
    names = [*header, last]
    return "\n".join(
        [markdown_row(names), markdown_row(["---"] * words + ["---:"] * (len(names) - words))]
    )


def _mean(chosen: pd.DataFrame) -> str:
    """Geometric mean of ratios over models, texts and the seeds that all have, and with the luckiest and the unluckiest one.

    Over everything that there is where they do not share two.
    """
    lines = [
        dict(zip(one["seeds"], one["ratios"], strict=True))
        for one in chosen.to_dict("records")
        if len(one["ratios"])
    ]
    shared = set.intersection(*map(set, lines)) if lines else set()
    means = [geometric_mean(line[seed] for line in lines) for seed in shared]
    if len(means) < 2:
        return _number(geometric_mean(chosen["ratio"]))
    return f"{geometric_mean(means):.2f} ({min(means):.2f} to {max(means):.2f})"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _ratio(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"
