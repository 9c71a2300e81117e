"""Score: one measured number with its uncertainty, and the table that a run keeps of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import pandas as pd

ORIGINAL = "original"
QUANTIZED = "quantized"
HELDOUT = "heldout"
"""Task name of what is measured on held-out text."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number; `stderr`, `low` and `high` (95 % interval) are NaN where nothing is known."""

    task: str
    metric: str
    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    model: str = QUANTIZED


def scores_table(scores: Iterable[Score]) -> pd.DataFrame:
    """The rows of `scores.parquet`: task, metric, value, stderr, low, high, model."""
    columns = [field.name for field in fields(Score)]
    table = pd.DataFrame([asdict(score) for score in scores], columns=columns)
    numbers = ["value", "stderr", "low", "high"]
    return table.astype(dict.fromkeys(numbers, "float64"))
