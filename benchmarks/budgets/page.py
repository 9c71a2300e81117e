"""The budgets as a page for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.budgets.measured import BAR
from benchmarks.budgets.spending import POLICIES, RECIPES
from benchmarks.rivals.paired import geometric_mean
from benchmarks.rivals.standing import standing_words
from benchmarks.rivals.table import markdown_row, short


def page(
    table: pd.DataFrame,
    models: Mapping[str, str],
    preface: str,
    failures: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """Markdown. `table` is of `long_table`, `models` says in words what each model is."""
    parts = ["# Ways to spend the same bits", preface, standing_words(), "![](budgets.png)"]
    parts += [f"## To `{BAR}`'s KL", _overview(table), "## Policies", _legend()]
    for model, words in models.items():
        parts += [f"## {model}", words, _details(table[table["model"] == model])]
    if failures:
        parts += ["## Cells without a result", "\n".join(f"- {line}" for line in failures)]
    if missing:
        parts.append(f"Not computed: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _overview(table: pd.DataFrame) -> str:
    """Geometric means over models and texts of KL as a multiple of the policy budget's, by standing."""
    targets = sorted(table["target_bits"].unique())
    lines = [
        markdown_row(["rounded by", "policy", "standing", *(f"{bits:g} bits" for bits in targets)]),
        markdown_row(["---"] * 3 + ["---:"] * len(targets)),
    ]
    known = table[table["ratio"].notna()]
    for (recipe, policy, kind), own in known.groupby(["recipe", "policy", "standing"], sort=False):
        means = [geometric_mean(own.loc[own["target_bits"] == bits, "ratio"]) for bits in targets]
        cells = ["" if math.isnan(mean) else f"{mean:.2f}" for mean in means]
        lines.append(markdown_row([str(recipe), str(policy), str(kind), *cells]))
    return "\n".join(lines)


def _details(table: pd.DataFrame) -> str:
    header = ["text", "standing", "bits", "rounded by", "policy", "stored bits", "KL"]
    header += [f"to {BAR}'s", "chosen"]
    lines = [
        markdown_row(header),
        markdown_row(["---"] * 2 + ["---:"] + ["---"] * 2 + ["---:"] * 3 + ["---"]),
    ]
    for one in table.to_dict("records"):
        name = f"{one['policy']}, {one['plans']} plans" if one["plans"] > 1 else one["policy"]
        ratio = ""
        if not math.isnan(one["ratio"]):
            ratio = f"{one['ratio']:.3f}"
            if not math.isnan(one["ratio_low"]):
                ratio += f" ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})"
        lines.append(
            markdown_row(
                [
                    one["text"],
                    one["standing"],
                    f"{one['target_bits']:g}",
                    one["recipe"],
                    name,
                    f"{one['bits_per_weight']:.3f}",
                    f"{short(one['kl'])} ({short(one['low'])} to {short(one['high'])})",
                    ratio,
                    one["variant"],
                ]
            )
        )
    return "\n".join(lines)


def _legend() -> str:
    lines = ["| policy | what it is |", "|---|---|"]
    lines += [markdown_row([policy.name, policy.words]) for policy in POLICIES]
    lines += ["", "| rounded by | config |", "|---|---|"]
    for name, options in RECIPES.items():
        told = ", ".join(f"`{key}={value}`" for key, value in options.items())
        lines.append(markdown_row([name, told]))
    return "\n".join(lines)
