"""The page says what an ingredient is worth, on what it was chosen, and which cells are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.ablation.figure import draw, shown_texts
from benchmarks.ablation.measured import Cells, long_table
from benchmarks.ablation.page import page
from benchmarks.ablation.recipes import Row, rows
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.table import Result

_ROWS = {row.name: row for row in rows()}
_TEXTS = ("builtin", "news")


def _result(row: Row, model: str, factor: float, seconds: float) -> Result:
    """Windows of unequal difficulty, each `factor` times as far from the original."""
    windows = (np.array([0.01, 0.02, 0.06]) * factor).tolist()
    mean = float(np.mean(windows))
    scores = [
        {"text": text, "metric": "kl_mean", "value": mean, "low": mean / 2, "high": mean * 2}
        for text in _TEXTS
    ]
    outcome = {"state": "done", "cpu_seconds": seconds, "versions": {}}
    return Result(
        model, row.contestant, FORMATS["int3"], outcome, scores, dict.fromkeys(_TEXTS, windows)
    )


@pytest.fixture
def cells() -> Cells:
    found: dict[tuple[str, str, str], dict[int, Result]] = {}
    for model in ("demo", "other"):
        for name, factor, seconds in (
            ("plain", 1.0, 4.0),
            ("plain + rotation", 0.5, 6.0),
            ("full", 0.25, 20.0),
            ("full − rotation", 0.75, 16.0),
        ):
            found[model, "int3", name] = {0: _result(_ROWS[name], model, factor, seconds)}
    why = {"state": "failed", "why": "ValueError: a | b"}
    failing = _ROWS["full, damping .05"]
    failed = Result("demo", failing.contestant, FORMATS["int3"], why)
    found["demo", "int3", failing.name] = {0: failed}
    return found


def _page(cells: Cells, **more: Any) -> str:
    table = long_table(cells, _ROWS.values())
    return page(table, list(_ROWS.values()), {"demo": "A demo.", "other": "Another."}, "", **more)


def test_ratios_are_to_the_own_recipe_in_pairs(cells: Cells) -> None:
    table = long_table(cells, _ROWS.values()).set_index(["row", "model", "text"])
    alone = table.loc[("plain + rotation", "demo", "builtin")]
    # windows differ sixfold, but all move alike, so that a paired interval has no width
    assert alone[["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx([0.5] * 3)
    assert alone["seconds_ratio"] == 1.5
    assert table.loc[("full − rotation", "other", "news"), "ratio"] == pytest.approx(3)


@pytest.fixture
def draws(cells: Cells) -> Cells:
    """Three draws: the recipe drifts, rotation is worth .5, then .8; a third draw of it is missing."""
    plain, turned = _ROWS["plain"], _ROWS["plain + rotation"]
    return dict(cells) | {
        (model, "int3", row.name): {
            seed: _result(row, model, factor, 4.0 + seed) for seed, factor in enumerate(factors)
        }
        for model in ("demo", "other")
        for row, factors in ((plain, (1.0, 2.0, 9.0)), (turned, (0.5, 1.6)))
    }


def test_draws_are_compared_with_the_same_draw_of_the_recipe(draws: Cells) -> None:
    table = long_table(draws, _ROWS.values()).set_index(["row", "model", "text"])
    alone = table.loc[("plain + rotation", "demo", "builtin")]
    assert list(alone["seeds"]) == [0, 1]
    assert list(alone["ratios"]) == pytest.approx([0.5, 0.8])
    assert alone["ratio"] == pytest.approx((0.5 * 0.8) ** 0.5)
    # in each draw all windows move alike
    assert alone[["ratio_low", "ratio_high"]].tolist() == pytest.approx([alone["ratio"]] * 2)
    assert alone["seconds"] == 4.5  # the median


def test_the_overview_shows_the_luckiest_and_the_unluckiest_draw(draws: Cells) -> None:
    line = next(line for line in _page(draws).splitlines() if line.startswith("| plain + rotation"))
    assert "| 0.63 (0.50 to 0.80) | 0.63 (0.50 to 0.80) |" in line


def test_draws_that_only_some_models_have_are_no_luck(draws: Cells) -> None:
    key = ("other", "int3", "plain + rotation")
    text = _page(dict(draws) | {key: {0: draws[key][0]}})
    line = next(line for line in text.splitlines() if line.startswith("| plain + rotation"))
    assert line.split(" | ")[2:4] == ["0.63 (0.50 to 0.80)", "0.54"]  # demo .63, other .5 twice


def test_draws_without_a_recipe_have_no_ratio(draws: Cells) -> None:
    alone = {key: value for key, value in draws.items() if key[2] == "plain + rotation"}
    table = long_table(alone, _ROWS.values())
    assert table["ratio"].isna().all()
    assert "| plain + rotation | the residual stream" in _page(alone)


def test_a_cell_that_failed_with_one_seed_counts_with_the_others(draws: Cells) -> None:
    key = ("demo", "int3", "plain + rotation")
    why = {"state": "failed", "why": "killed"}
    failed = Result("demo", _ROWS[key[2]].contestant, FORMATS["int3"], why)
    found = dict(draws) | {key: {0: failed, 1: draws[key][1]}}
    assert "| demo | int3 | plain + rotation | `seed 0: killed` |" in _page(found)
    table = long_table(found, _ROWS.values())
    own = table[(table["row"] == key[2]) & (table["model"] == "demo")]
    assert own["state"].tolist() == ["done"] * 2
    assert [list(seeds) for seeds in own["seeds"]] == [[1], [1]]


def test_only_tuned_models_on_tuned_texts_are_tuned_on(cells: Cells) -> None:
    table = long_table(cells, _ROWS.values())
    found = table[table["standing"] == "tuned on"][["model", "text"]].drop_duplicates()
    assert found.to_numpy().tolist() == [["demo", "builtin"]]


def test_the_overview_parts_what_was_tuned_on_from_what_was_not(cells: Cells) -> None:
    cells = dict(cells)
    row = _ROWS["plain + rotation"]
    cells["other", "int3", row.name] = {0: _result(row, "other", 0.9, 6)}
    lines = _page(cells).splitlines()
    assert "| recipe | what it is | int3, tuned on | int3, held back | seconds |" in lines
    line = next(line for line in lines if line.startswith("| plain + rotation |"))
    mean = (0.5 * 0.9 * 0.9) ** (1 / 3)
    assert line.endswith(f"| 0.50 | {mean:.2f} | 1.50 |")


def test_failed_and_missing_cells_are_named(cells: Cells) -> None:
    text = _page(cells, missing=["demo, int4: plain"])
    assert r"| demo | int3 | full, damping .05 | `ValueError: a \| b` |" in text
    assert "Not computed: demo, int4: plain." in text


def test_every_table_row_has_as_many_cells_as_its_header(cells: Cells) -> None:
    for block in _page(cells).split("\n\n"):
        lines = [line.replace(r"\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_trained_routers_have_no_seconds_of_their_own(cells: Cells) -> None:
    row = _ROWS["full, routers by kl"]
    found = dict(cells) | {("other", "int3", row.name): {0: _result(row, "other", 0.2, 90.0)}}
    table = long_table(found, _ROWS.values())
    own = table[table["row"] == row.name]
    assert own["ratio"].tolist() == pytest.approx([0.8, 0.8])
    assert own["seconds"].isna().all()


def test_the_table_survives_parquet(cells: Cells, tmp_path: Path) -> None:
    table = long_table(cells, _ROWS.values())
    table.to_parquet(tmp_path / "ablation.parquet")
    assert len(pd.read_parquet(tmp_path / "ablation.parquet")) == 2 * 4 * 2 + 1


def test_the_figure_shows_the_text_that_was_held_back(cells: Cells) -> None:
    table = long_table(cells, _ROWS.values())
    assert shown_texts(table) == {"demo": "news", "other": "news"}
    shown = draw(table, list(_ROWS.values()))
    assert shown.startswith(b"\x89PNG")
    unseen = table["text"] == "builtin"
    changed = table.assign(ratio=table["ratio"].where(~unseen, 9.0))
    assert draw(changed, list(_ROWS.values())) == shown
    alone = table[table["standing"] == "tuned on"]
    assert shown_texts(alone) == {"demo": "builtin"}
    changed = table.assign(ratio=table["ratio"].where(unseen, 9.0))
    assert draw(changed, list(_ROWS.values())) != shown


def test_without_recipes_there_is_nothing_to_draw(cells: Cells) -> None:
    alone = {key: value for key, value in cells.items() if key[2] == "plain + rotation"}
    with pytest.raises(ValueError, match="no ratio is known"):
        draw(long_table(alone, _ROWS.values()), list(_ROWS.values()))
