"""A sweep's front, table and picture."""

from __future__ import annotations

import pandas as pd
import pytest

from alphaquant.reporting.sweep import front, sweep_markdown, sweep_png


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        ("a", 3.0, 0.04, "completed", None),
        ("b", 4.0, 0.01, "completed", None),
        ("c", 4.5, 0.02, "completed", None),
        ("d", None, None, "failed", "out | of\nmemory"),
    ]
    found = pd.DataFrame(rows, columns=["point", "bits_per_weight", "kl", "status", "error"])
    return found.assign(series="gptq", short=found["point"], perplexity=10.0, top1_agreement=0.9)


@pytest.mark.parametrize(
    ("bits", "costs", "best"),
    [
        ([3, 4, 5], [3, 2, 1], [0, 1, 2]),
        ([3, 4, 5], [1, 2, 3], [0]),
        ([4, 3, 4], [2, 3, 1], [1, 2]),
        ([4, 4], [1, 1], [0]),
        ([], [], []),
    ],
)
def test_the_front_is_what_nothing_beats(
    bits: list[float], costs: list[float], best: list[int]
) -> None:
    assert front(bits, costs) == best


def test_points_on_the_front_are_bold_and_failures_say_why(table: pd.DataFrame) -> None:
    text = sweep_markdown("demo", table, "pareto.png")
    assert "| **a** | 3.000 | 0.0400 | 10.00 | 90.0% | completed |" in text
    assert "| **b** |" in text
    assert "| c | 4.500 |" in text
    assert "| d |  |  | 10.00 | 90.0% | failed: out / of memory |" in text
    assert "](pareto.png)" in text


def test_a_picture_needs_a_scored_point(table: pd.DataFrame) -> None:
    assert sweep_png(table.iloc[3:]) is None
    assert (sweep_png(table) or b"").startswith(b"\x89PNG")
    assert sweep_png(table) == sweep_png(table)
