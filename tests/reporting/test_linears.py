"""Tables join on the linear, and alpha is set against what can be compared with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from alphaquant.reporting.linears import linear_table, plan_bits, reference_format, relate, schemes
from alphaquant.reporting.tables import ReportInputs, tidy


def test_every_linear_has_one_row_with_the_columns_of_all_tables(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(moe_run))
    assert moe_run.plan is not None
    assert sorted(table["linear"]) == sorted(moe_run.plan["linear"])
    assert {"alpha", "scheme", "loss", "loss_per_weight", "error", "tokens"} <= set(table.columns)


def test_bits_per_weight_is_the_mean_by_weights(moe_run: ReportInputs) -> None:
    plan = moe_run.plan
    assert plan is not None
    size = plan["rows"] * plan["cols"]
    expected = (plan["bits_per_weight"] * size).sum() / size.sum()
    assert plan_bits(linear_table(tidy(moe_run))) == pytest.approx(expected)


def test_loss_per_weight_is_the_loss_at_the_reference_format(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(moe_run)).set_index("linear")
    sensitivity = moe_run.sensitivity
    assert sensitivity is not None
    row = sensitivity[sensitivity["format"] == "mxfp4"].iloc[5]
    expected = row["predicted_loss"] / table.loc[row["linear"], "size"] * 1e6
    assert table.loc[row["linear"], "loss_per_weight"] == pytest.approx(expected)


def test_the_reference_format_covers_most_linears_and_is_nearest_to_the_bits() -> None:
    rows = [("a", "int8", 8.0), ("b", "int8", 8.0), ("a", "int4", 4.0), ("a", "bf16", 16.0)]
    rows += [("b", "bf16", 16.0), ("a", "int6", 6.0), ("b", "int6", 6.0)]
    table = pd.DataFrame(rows, columns=["linear", "format", "bits_per_weight"])
    assert reference_format(table, 4.0) == "int6"
    assert reference_format(table, 7.5) == "int8"
    assert reference_format(table[table["format"] == "bf16"], 4.0) is None


def test_schemes_are_written_as_the_sensitivity_table_writes_them() -> None:
    plan = pd.DataFrame({"format": ["int4", "mxfp4", "bf16"], "group_size": [64, 32, None]})
    plan["symmetric"] = [False, True, True]
    assert schemes(plan) == ["int4-g64-asym", "mxfp4", "bf16"]


def test_routers_and_unrounded_linears_do_not_enter_a_relation(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(moe_run))
    first = table.index[table["role"] == "q"][0]
    table.loc[first, "bits_per_weight"] = 16.0
    relation = relate(table, "error_rtn", "", thing="rounding error")
    assert relation is not None
    assert "router" not in set(relation.data["role"])
    assert table.loc[first, "linear"] not in set(relation.data["linear"])


def test_a_link_that_is_only_the_roles_is_gone_given_the_role(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(moe_run))
    roles = {role: place for place, role in enumerate(sorted(set(table["role"])))}
    noise = np.random.default_rng(0).normal(0, 0.1, (2, len(table)))
    table["alpha"] = table["role"].map(roles) + noise[0]
    table["loss_per_weight"] = np.exp(table["role"].map(roles) + noise[1])
    relation = relate(table, "loss_per_weight", "", thing="sensitivity")
    assert relation is not None
    assert relation.plain.value > 0.8
    assert abs(relation.partial.value) < 0.2


def test_a_u_shaped_course_over_depth_is_no_link_given_the_depth(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(moe_run))
    table["block"] = pd.array(np.arange(len(table)) % 12, dtype="Int64")
    bend = (table["block"].astype(float) - 5.5) ** 2
    noise = np.random.default_rng(1).normal(0, 3, (2, len(table)))
    table["alpha"], table["loss_per_weight"] = bend + noise[0], bend + noise[1] + 100
    relation = relate(table, "loss_per_weight", "", thing="sensitivity")
    assert relation is not None
    assert relation.plain.value > 0.7
    assert abs(relation.partial.value) < 0.25


def test_a_missing_column_gives_no_relation(moe_run: ReportInputs) -> None:
    table = linear_table(tidy(replace(moe_run, sensitivity=None)))
    assert relate(table, "loss_per_weight", "", thing="sensitivity") is None


def test_nothing_known_is_an_empty_table() -> None:
    assert linear_table(ReportInputs(model="m")).empty
