"""Finding one's way in scores.parquet: the headline numbers, the tasks, and other plans."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

ORIGINAL, QUANTIZED = "original", "quantized"
BEFORE_ROUTER = "router-before"
ROTATED = "rotated, not quantized"
"""Labels of the `model` column; any other label is another plan, for comparison."""

HELDOUT = "heldout"
"""Task under which perplexity and fidelity on held-out text are filed."""

_NO_PLAN = (ORIGINAL, QUANTIZED, BEFORE_ROUTER, ROTATED)
_SHARES = ("acc", "exact_match", "top1_agreement", "flips", "f1", "em", "mcc", "pass@1")
_LOWER_IS_BETTER = re.compile(r"kl_|perplexity|flips|bits_per_byte|loss")
_SERIES = re.compile(r"[\s_#-]+\d+$")
"""The end of a label that is one of a series, such as `random 3`; `uniform int4` is not."""

# one number per task on the first screen, as the tasks' authors report it
_MAIN = ("exact_match", "acc_norm", "acc", "bits_per_byte", "byte_perplexity")


@dataclass(frozen=True, slots=True)
class Score:
    """One measured number with its 95 % interval (NaN where none is known)."""

    task: str
    metric: str
    model: str
    value: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """The metric without lm-eval's filter."""
        return self.metric.split(",")[0]

    @property
    def is_share(self) -> bool:
        """Whether it reads best as a percentage."""
        return self.metric.startswith(_SHARES)

    @property
    def is_change(self) -> bool:
        """Whether it says how another score changed, question by question or window by window."""
        return self.metric.endswith("_change") or self.metric == "perplexity_ratio"

    @property
    def lower_is_better(self) -> bool:
        """Direction of the metric, told from its name."""
        return bool(_LOWER_IS_BETTER.search(self.metric))


@dataclass(frozen=True)
class Scores:
    """All rows of scores.parquet, in order."""

    rows: tuple[Score, ...]

    @classmethod
    def of(cls, table: pd.DataFrame | None) -> Scores:
        """Read the table; a stderr without bounds becomes an interval of 1.96 standard errors."""
        if table is None:
            return cls(())
        table = table.reindex(columns=["task", "metric", "model", "value", "stderr", "low", "high"])
        numbers = table[["value", "stderr", "low", "high"]].to_numpy(
            dtype="float64", na_value=np.nan
        )
        rows = []
        for (task, metric, model), (value, stderr, low, high) in zip(
            table[["task", "metric", "model"]].astype(str).to_numpy(), numbers, strict=True
        ):
            if np.isnan(low) or np.isnan(high):
                low, high = value - 1.96 * stderr, value + 1.96 * stderr
            rows.append(Score(task, metric, model, float(value), float(low), float(high)))
        return cls(tuple(rows))

    def find(self, metric: str, model: str = QUANTIZED, task: str = HELDOUT) -> Score | None:
        """The row with this metric, model and task."""
        wanted = (task, metric, model)
        return next((row for row in self.rows if (row.task, row.metric, row.model) == wanted), None)

    def change(self, score: Score) -> Score | None:
        """The paired change that belongs to a score of the quantized model."""
        ratio = (
            self.find("perplexity_ratio", task=score.task) if score.metric == "perplexity" else None
        )
        return ratio or self.find(f"{score.metric}_change", task=score.task)

    def pairs(self) -> list[tuple[Score | None, Score]]:
        """(original, quantized) of everything measured on the quantized model, changes apart."""
        return [
            (self.find(row.metric, ORIGINAL, row.task), row)
            for row in self.rows
            if row.model == QUANTIZED and not row.is_change
        ]

    def tasks(self) -> list[tuple[Score | None, Score]]:
        """(original, quantized) of one metric of every task other than the held-out text."""
        found: dict[str, list[tuple[Score | None, Score]]] = {}
        for pair in self.pairs():
            if pair[1].task != HELDOUT:
                found.setdefault(pair[1].task, []).append(pair)
        return [min(pairs, key=lambda pair: _rank(pair[1])) for pairs in found.values()]

    def rivals(self) -> list[Rival]:
        """Other plans, best first; a numbered series (random plan 1, random plan 2) is one rival."""
        found: dict[str, list[Score]] = {}
        for row in self.rows:
            if row.metric == "kl_mean" and row.model not in _NO_PLAN:
                found.setdefault(_SERIES.sub("", row.model), []).append(row)
        rivals = []
        for label, rows in found.items():
            bits = [s.value for row in rows if (s := self.find("bits_per_weight", row.model))]
            rivals.append(Rival(label, tuple(rows), float(np.mean(bits)) if bits else None))
        return sorted(rivals, key=lambda rival: rival.median)


@dataclass(frozen=True)
class Rival:
    """Another plan for the same model, or a series of them: `scores` are KL to the original."""

    label: str
    scores: tuple[Score, ...]
    bits: float | None
    """Stored bits per weight, the mean of a series."""

    @property
    def median(self) -> float:
        """Median KL of the series."""
        return float(np.median([score.value for score in self.scores]))

    @property
    def text(self) -> str:
        """Label, size of the series, bits."""
        series = f" ({len(self.scores)})" if len(self.scores) > 1 else ""
        return f"{self.label}{series}" + (f", {self.bits:.2f} bits" if self.bits else "")


def _rank(score: Score) -> int:
    return _MAIN.index(score.name) if score.name in _MAIN else len(_MAIN)
