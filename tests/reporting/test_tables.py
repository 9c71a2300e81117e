"""Tables are read whole, checked by name and ordered, or refused with a message that helps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from alphaquant.errors import StoreError
from alphaquant.reporting.tables import FILES, ReportInputs, read_inputs, role_order, tidy


def test_a_folder_gives_the_tables_that_are_there(moe_run: ReportInputs, tmp_path: Path) -> None:
    assert moe_run.alpha is not None
    moe_run.alpha.to_parquet(tmp_path / "alpha.parquet")
    (tmp_path / "router.json").write_text(json.dumps({"skipped": "dense"}))
    found = read_inputs(tmp_path, "m", digest="abc")
    assert found.alpha is not None
    assert len(found.alpha) == len(moe_run.alpha)
    assert found.router == {"skipped": "dense"}
    assert found.plan is None
    assert found.digest == "abc"


def test_paths_by_table_name_are_read(moe_run: ReportInputs, tmp_path: Path) -> None:
    assert moe_run.plan is not None
    moe_run.plan.to_parquet(tmp_path / "any-name.parquet")
    found = read_inputs({"plan": tmp_path / "any-name.parquet"}, "m")
    assert found.plan is not None
    assert set(FILES) >= {"plan"}


def test_an_unknown_table_name_is_an_error_that_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"'alfa'; allowed: alpha, sensitivity, plan"):
        read_inputs({"alfa": tmp_path / "x.parquet"}, "m")


def test_a_damaged_table_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "alpha.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match=r"alpha\.parquet.*Run its stage again"):
        read_inputs(tmp_path, "m")


def test_a_missing_column_is_named(moe_run: ReportInputs) -> None:
    assert moe_run.errors is not None
    broken = replace(moe_run, errors=moe_run.errors.drop(columns="error_rtn"))
    with pytest.raises(StoreError, match="errors table has no column 'error_rtn'"):
        tidy(broken)


def test_rows_are_ordered_whatever_order_they_came_in(moe_run: ReportInputs) -> None:
    assert moe_run.plan is not None
    shuffled = replace(moe_run, plan=moe_run.plan.sample(frac=1, random_state=3))
    first, second = tidy(moe_run).plan, tidy(shuffled).plan
    assert first is not None
    assert second is not None
    pd.testing.assert_frame_equal(first, second)
    assert list(first["role"][:4]) == ["q", "k", "v", "o"] or first["expert"][0] == 0


def test_a_table_without_rows_is_no_table(moe_run: ReportInputs) -> None:
    assert moe_run.errors is not None
    assert tidy(replace(moe_run, errors=moe_run.errors.iloc[:0])).errors is None


def test_roles_come_in_the_order_of_a_block_and_unknown_ones_last() -> None:
    assert role_order(["shared", "down", "q", "lm_head", "k"]) == [
        "q",
        "k",
        "down",
        "lm_head",
        "shared",
    ]
