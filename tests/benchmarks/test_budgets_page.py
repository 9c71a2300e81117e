"""Policies are compared at equal bits and rounding, with intervals that know of chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.budgets.figure import draw
from benchmarks.budgets.measured import Trial, long_table
from benchmarks.budgets.page import page
from benchmarks.rivals.catalogue import Contestant
from benchmarks.rivals.formats import MIXED
from benchmarks.rivals.table import Result

_WINDOWS = np.array([0.01, 0.03, 0.08, 0.02])


def _trial(
    policy: str, factor: float, bits: float = 3.0, draw_: int = 0, recipe: str = "GPTQ"
) -> Trial:
    windows = {text: (_WINDOWS * factor).tolist() for text in ("builtin", "news")}
    scores = [
        {"text": text, "metric": "kl_mean", "value": float(np.mean(kl)), "low": 0, "high": 1}
        for text, kl in windows.items()
    ]
    contestant = Contestant("alphaquant", f"{policy}-{draw_}", "")
    result = Result("demo", contestant, MIXED, {"state": "done"}, scores, windows)
    return Trial(policy, recipe, bits, draw_, bits - 0.01, "hill", result)  # type: ignore[arg-type]


@pytest.fixture
def trials() -> list[Trial]:
    found = [
        _trial(policy, factor / bits, bits)
        for bits in (2.5, 3.0)
        for policy, factor in (("budget", 1.0), ("uniform", 1.5))
    ]
    found += [_trial("random", factor, 3.0, at) for at, factor in enumerate((1.0, 2.0, 3.0))]
    return [
        *found,
        _trial("budget", 0.1, recipe="balanced"),
        _trial("uniform", 0.2, recipe="balanced"),
    ]


def test_ratios_are_to_the_budget_of_equal_bits_and_rounding(trials: list[Trial]) -> None:
    table = long_table(trials).set_index(["recipe", "policy", "target_bits", "text"])
    even = table.loc[("GPTQ", "uniform", 2.5, "builtin")]
    assert even[["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx([1.5] * 3)
    assert table.loc[("balanced", "uniform", 3.0, "news"), "ratio"] == pytest.approx(2)
    assert np.isnan(table.loc[("balanced", "budget", 3.0, "news"), "ratio"])


def test_chance_widens_the_interval_of_plans_that_were_drawn(trials: list[Trial]) -> None:
    table = long_table(trials).set_index(["recipe", "policy", "target_bits", "text"])
    drawn = table.loc[("GPTQ", "random", 3.0, "news")]
    assert drawn["plans"] == 3
    assert drawn["kl"] == pytest.approx(2 * _WINDOWS.mean())
    assert drawn["ratio"] == pytest.approx(6)
    assert drawn["ratio_low"] < 5 < 7 < drawn["ratio_high"]


def test_the_page_parts_what_was_tuned_on_and_names_what_is_missing(trials: list[Trial]) -> None:
    text = page(long_table(trials), {"demo": "A demo."}, "Made today.", ["one: why"], ["two"])
    assert "| GPTQ | uniform | tuned on | 1.50 | 1.50 |" in text
    assert "| GPTQ | uniform | held back | 1.50 | 1.50 |" in text
    assert "| GPTQ | random | held back |  | 6.00 |" in text
    assert "random, 3 plans" in text
    assert "- one: why" in text
    assert "Not computed: two." in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_table_survives_parquet_and_nothing_measured_is_an_empty_one(
    trials: list[Trial], tmp_path: Path
) -> None:
    table = long_table(trials)
    table.to_parquet(tmp_path / "budgets.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "budgets.parquet"), table)
    assert long_table([]).columns.tolist() == table.columns.tolist()


def test_the_figure_draws_what_there_is(trials: list[Trial]) -> None:
    whole = draw(long_table(trials), trials)
    assert whole.startswith(b"\x89PNG")
    assert draw(long_table(trials[:2]), trials[:2]) != whole
