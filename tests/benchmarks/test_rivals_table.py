"""The page says who was best, by how much, and why a cell has no result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from benchmarks.rivals.catalogue import CONTESTANTS, Contestant, chosen
from benchmarks.rivals.figure import draw
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.table import Result, long_table, page

_BY_KEY = {one.key: one for one in CONTESTANTS}


def _result(key: str, kl: float, seconds: float, name: str = "int4") -> Result:
    outcome: dict[str, Any] = {
        "state": "done",
        "seconds": seconds,
        "cpu_seconds": seconds / 2,
        "cpu": 2 * seconds,
        "wall": seconds + 5,
        "peak_bytes": 2**30,
        "saved_bytes": 5_000_000,
    }
    scores = [
        {
            "text": "builtin",
            "metric": metric,
            "value": value,
            "low": value * 0.9,
            "high": value * 1.1,
        }
        for metric, value in (("kl_mean", kl), ("perplexity_ratio", 1.01), ("top1_agreement", 0.98))
    ]
    return Result("tiny", _BY_KEY[key], FORMATS[name], outcome, scores)


@pytest.fixture
def results() -> list[Result]:
    failed = Result(
        "tiny",
        _BY_KEY["llmcompressor:default"],
        FORMATS["int4"],
        {"state": "failed", "why": "ValueError: a | b"},
    )
    return [
        _result("autoround:default", 0.002, 100),
        _result("alphaquant:default", 0.001, 25),
        failed,
    ]


def test_the_lowest_divergence_comes_first_with_its_ratios(results: list[Result]) -> None:
    text = page(results, {"tiny": "A model."}, {"tiny": {"builtin": 12.0}}, "Made today.")
    rows = [line for line in text.splitlines() if line.startswith("| int4 g128")]
    assert [row.split(" | ")[1] for row in rows] == ["AlphaQuant", "AutoRound"]
    assert "0.00100 (0.000900 to 0.00110) | 0.50 |" in rows[0]
    assert "| 25 | 12.5 | 0.25 | 50 |" in rows[0]
    assert "12.00 on builtin" in text


def test_a_ratio_has_an_interval_over_pairs_of_windows() -> None:
    windows = [0.001, 0.002, 0.006]
    bar, half, mixed = (
        replace(_result(key, sum(kl) / 3, 10), kl={"builtin": kl})
        for key, kl in (
            ("autoround:default", windows),
            ("alphaquant:tuned", [kl / 2 for kl in windows]),
            ("alphaquant:full", [0.002, 0.002, 0.004]),
        )
    )
    text = page([bar, half, mixed], {"tiny": "A model."}, {"tiny": {"builtin": 12.0}}, "")
    rows = {
        line.split(" | ")[2]: line.split(" | ")[5] for line in text.splitlines() if "| int4" in line
    }
    # windows differ sixfold, but those of `tuned` are all half of AutoRound's
    assert rows["tuned"] == "0.50 (0.50 to 0.50)"
    assert rows["default"] == "1.00"
    assert rows["full"].startswith("0.89 (0.67 to ")


def test_figures_say_whether_choices_were_made_on_them(results: list[Result]) -> None:
    names = {"tiny": "A model.", "demo": "Another."}
    text = page(results, names, {name: {"builtin": 12.0, "news": 30.0} for name in names}, "")
    heads = [line for line in text.splitlines() if line.startswith("| format | program")]
    assert "KL on builtin (held back)" in heads[0]
    assert "KL on builtin (tuned on)" in heads[1]
    assert "KL on news (held back)" in heads[1]


def test_a_failed_cell_says_why(results: list[Result]) -> None:
    text = page(results, {"tiny": "A model."}, {"tiny": {"builtin": 12.0}}, "")
    assert r"| tiny | llm-compressor | default | int4 g128 | `ValueError: a \| b` |" in text


def test_cells_that_nobody_computed_are_named(results: list[Result]) -> None:
    missing = {"tiny, autoround:best": ["int4", "int2"]}
    text = page(results, {"tiny": "A model."}, {"tiny": {"builtin": 12.0}}, "", missing)
    assert "Not computed: tiny, autoround:best: int4, int2." in text


def test_every_table_row_has_as_many_cells_as_its_header(results: list[Result]) -> None:
    text = page(results, {"tiny": "A model."}, {"tiny": {"builtin": 12.0}}, "")
    for block in text.split("\n\n"):
        lines = [line.replace(r"\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_long_table_keeps_failed_cells_and_survives_parquet(
    results: list[Result], tmp_path: Any
) -> None:
    long_table(results).to_parquet(tmp_path / "rivals.parquet")
    table = pd.read_parquet(tmp_path / "rivals.parquet")
    assert len(table) == 2 * 3 + 1
    assert table.loc[table["state"] == "failed", "why"].tolist() == ["ValueError: a | b"]


def test_the_figure_draws_what_there_is(results: list[Result]) -> None:
    assert draw(results, {"tiny": "builtin"}).startswith(b"\x89PNG")
    alone = draw(results[1:], {"tiny": "builtin"})
    assert alone.startswith(b"\x89PNG")
    assert alone != draw(results, {"tiny": "builtin"})


def test_slow_contestants_take_part_only_by_name() -> None:
    assert "autoround:best" not in [one.key for one in chosen(None, [])]
    assert "autoround:best" not in [one.key for one in chosen(["autoround"], [])]
    assert [one.key for one in chosen(["autoround:best"], [])] == ["autoround:best"]
    mine = Contestant("alphaquant", "mine", "", {"a": "b"})
    assert chosen(["alphaquant:mine"], [mine]) == [mine]
    with pytest.raises(KeyError, match="nobody"):
        chosen(["nobody"], [])
