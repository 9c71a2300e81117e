"""The comparison's results as a page for people and a table for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pandas as pd

from benchmarks.rivals.catalogue import Contestant
from benchmarks.rivals.formats import Format
from benchmarks.rivals.paired import kl_ratio
from benchmarks.rivals.standing import standing

BAR = "autoround:default"
"""Whom ratios are taken to: the strongest rival of its kind."""


@dataclass(frozen=True)
class Result:
    """A cell with what became of it."""

    model: str
    contestant: Contestant
    format: Format
    outcome: dict[str, Any]
    """Of Cell.compute."""
    scores: Sequence[dict[str, Any]] = ()
    kl: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Divergence of every window, by text."""

    @property
    def spent(self) -> float:
        """Seconds that ratios are taken of: of the CPU, which a busy machine changes less, or by the clock on a GPU."""
        on_gpu = self.outcome.get("device", "cpu") != "cpu"
        took: float = self.outcome["seconds" if on_gpu else "cpu_seconds"]
        return took

    def value(self, text: str, metric: str) -> float:
        """A score; NaN when there is none."""
        return next(
            (s["value"] for s in self.scores if (s["text"], s["metric"]) == (text, metric)),
            math.nan,
        )

    def interval(self, text: str, metric: str) -> tuple[float, float]:
        """Its 95 % interval."""
        found = [s for s in self.scores if (s["text"], s["metric"]) == (text, metric)]
        return (found[0]["low"], found[0]["high"]) if found else (math.nan, math.nan)


def long_table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per cell, text and metric; failed cells have one row without a score."""
    rows = []
    for result in results:
        cell = {
            "model": result.model,
            "rival": result.contestant.rival,
            "setting": result.contestant.setting,
            "format": result.format.label,
            "group_size": result.format.group,
            "bits_per_weight": result.format.bits_per_weight,
        }
        names = ("state", "why", "seconds", "cpu_seconds", "wall", "cpu")
        names += ("peak_bytes", "device", "device_peak_bytes", "saved_bytes")
        cell |= {name: result.outcome.get(name) for name in names}
        rows += [cell | score for score in result.scores] or [cell]
    return pd.DataFrame(rows)


def page(
    results: Sequence[Result],
    models: dict[str, str],
    originals: dict[str, dict[str, float]],
    preface: str,
    missing: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Markdown: a table per model, the legend of settings, and why cells failed.

    `models` says in words what each model is; `originals` holds its perplexity by text; `missing` are
    the formats that nobody has computed, by model and contestant.
    """
    parts = ["# AlphaQuant and other quantizers side by side", preface, "![](rivals.png)"]
    for model, words in models.items():
        own = [result for result in results if result.model == model]
        texts = list(originals[model])
        told = ", ".join(f"{originals[model][text]:.2f} on {text}" for text in texts)
        parts += [
            f"## {model}",
            f"{words} Perplexity of the original: {told}.",
            _model_table(own, texts, model),
        ]
    parts += ["## Settings", _legend(results)]
    if failed := [result for result in results if result.outcome["state"] != "done"]:
        parts += ["## Cells without a result", _failures(failed)]
    if missing:
        told = "; ".join(f"{who}: {', '.join(formats)}" for who, formats in missing.items())
        parts.append(f"Not computed: {told}.")
    return "\n\n".join(parts) + "\n"


def _model_table(results: Sequence[Result], texts: Sequence[str], model: str) -> str:
    header = ["format", "program", "setting", "bits per weight"]
    for text in texts:
        header += [f"KL on {text} ({standing(model, text)})", "to AutoRound's"]
    header += ["perplexity ratio", "same top token"]
    header += ["seconds", "CPU seconds", "to AutoRound's", "CPU s of all", "peak GiB", "MB on disk"]
    lines = [markdown_row(header), markdown_row(["---"] * 3 + ["---:"] * (len(header) - 3))]
    for label in dict.fromkeys(result.format.label for result in results):
        group = [r for r in results if r.format.label == label and r.outcome["state"] == "done"]
        group.sort(key=lambda result: result.value(texts[0], "kl_mean"))
        bar = next((r for r in group if r.contestant.key == BAR), None)
        lines += [markdown_row(_cells(result, bar, texts)) for result in group]
    return "\n".join(lines)


def _cells(result: Result, bar: Result | None, texts: Sequence[str]) -> list[str]:
    took = result.outcome
    cells = [
        result.format.label,
        result.contestant.title,
        result.contestant.setting,
        f"{result.format.bits_per_weight:.3f}",
    ]
    for text in texts:
        low, high = result.interval(text, "kl_mean")
        kl = result.value(text, "kl_mean")
        cells.append(f"{short(kl)} ({short(low)} to {short(high)})")
        cells.append(_against(result, bar, text))
    cells.append(f"{result.value(texts[0], 'perplexity_ratio'):.4f}")
    cells.append(f"{result.value(texts[0], 'top1_agreement'):.1%}")
    cells += [f"{took['seconds']:.0f}", f"{took['cpu_seconds']:.1f}"]
    cells.append(_ratio(result.spent, bar.spent if bar else math.nan))
    cells.append(f"{took['cpu']:.0f}")
    cells.append(f"{took['peak_bytes'] / 2**30:.2f}")
    cells.append(f"{took['saved_bytes'] / 1e6:.2f}")
    return cells


def _against(result: Result, bar: Result | None, text: str) -> str:
    """Divergence as a multiple of the bar's, with its interval over windows in pairs where they are known."""
    if bar is None:
        return ""
    if result is bar or text not in result.kl or text not in bar.kl:
        return _ratio(result.value(text, "kl_mean"), bar.value(text, "kl_mean"))
    ratio = kl_ratio(result.kl[text], bar.kl[text])
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _legend(results: Iterable[Result]) -> str:
    seen = {result.contestant.key: result.contestant for result in results}
    lines = ["| program | setting | what it is |", "|---|---|---|"]
    lines += [markdown_row([one.title, one.setting, one.words]) for one in seen.values()]
    return "\n".join(lines)


def _failures(failed: Iterable[Result]) -> str:
    lines = ["| model | program | setting | format | why |", "|---|---|---|---|---|"]
    for result in failed:
        one = result.contestant
        why = str(result.outcome.get("why", "")).replace("`", "'")
        lines.append(
            markdown_row([result.model, one.title, one.setting, result.format.label, f"`{why}`"])
        )
    return "\n".join(lines)


def _ratio(value: float, to: float) -> str:
    return "" if math.isnan(to) or math.isnan(value) else f"{value / to:.2f}"


def short(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if value >= 1e-4 else f"{value:.2e}"


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
