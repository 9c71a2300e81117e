"""Recipes follow from the ingredients' rows, and every row is a config that this version understands."""

from __future__ import annotations

import pytest

from alphaquant.config.file import load_config
from alphaquant.errors import ConfigError
from benchmarks.ablation.__main__ import chosen
from benchmarks.ablation.recipes import BASES, INGREDIENTS, Ingredient, Row, recipe, rows


def _config(row: Row) -> dict[str, object]:
    return load_config(None, [f"{key}={value}" for key, value in row.settings.items()]).model_dump()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_every_row_is_a_config_that_differs_from_its_recipe(row: Row) -> None:
    base = next(one for one in rows() if one.name == row.base)
    assert (_config(row) == _config(base)) == (row == base)


def test_an_ingredient_is_on_alone_and_off_alone() -> None:
    plain, full = recipe("plain"), recipe("full")
    assert plain.keys() == full.keys()
    assert all(plain[key] != full[key] for key in plain)
    by_name = {row.name: row for row in rows()}
    for one in INGREDIENTS:
        alone = by_name[f"plain + {one.name}"].settings
        without = by_name[f"full − {one.name}"].settings
        assert {key for key in plain if alone[key] != plain[key]} == set(one.on)
        assert {key for key in full if without[key] != full[key]} == set(one.off)


def test_one_pass_has_everything_but_what_stands_around_it() -> None:
    plain, once, full = (recipe(base) for base in BASES)
    around = {key for one in INGREDIENTS if one.around for key in one.on}
    assert {key for key in full if once[key] != full[key]} == around
    assert {key for key in plain if once[key] == plain[key]} == around


def test_a_new_ingredient_is_one_row() -> None:
    new = Ingredient(
        "block size", "", {"quantization.block_size": "64"}, {"quantization.block_size": "32"}
    )
    found = {row.name: row.settings for row in rows((*INGREDIENTS, new))}
    assert found["full"]["quantization.block_size"] == "64"
    assert found["full − block size"]["quantization.block_size"] == "32"
    assert found["plain + block size"]["quantization.block_size"] == "64"
    assert found["plain + rotation"]["quantization.block_size"] == "32"


def test_rows_have_names_and_cells_of_their_own() -> None:
    table = rows()
    assert len({row.name for row in table}) == len(table)
    keys = [row.contestant.key for row in table]
    assert len(set(keys)) == len(keys)
    assert all("/" not in key and " " not in key for key in keys)


def test_rows_are_chosen_by_name_with_their_recipes() -> None:
    table = rows()
    found = chosen(table, ["rotation", "damping .05"])
    assert [row.name for row in found] == [
        "plain",
        "plain + rotation",
        "plain, damping .05",
        "one pass",
        "one pass, damping .05",
        "full",
        "full − rotation",
        "full, damping .05",
    ]
    assert chosen(table, None) == table
    assert chosen(table, []) == []
    with pytest.raises(ConfigError, match="'yeast' is no row; allowed: 25 steps"):
        chosen(table, ["yeast"])
