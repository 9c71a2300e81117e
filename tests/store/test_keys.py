"""Keys: equal for equal content in every process, an error for content nobody knows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from alphaquant.config import AllocationConfig, CalibrationConfig
from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.keys import canonical, differences, digest_of

_SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_VALUES = st.recursive(
    _SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    y: float


def test_an_artifact_counts_by_kind_and_digest() -> None:
    ref = ArtifactRef(kind="alpha", digest="ab", size=3)
    assert canonical(ref) == {"kind": "alpha", "digest": "ab"}


def test_a_config_section_counts_by_its_fields() -> None:
    section = CalibrationConfig(samples=4)
    assert canonical(section) == section.model_dump()


def test_nested_sections_dataclasses_enums_and_tuples_count() -> None:
    assert canonical((Colour.RED, Point(1, 2.5))) == ["red", {"x": 1, "y": 2.5}]
    assert isinstance(canonical(AllocationConfig()), dict)


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset({1}), Path("x"), b"x", object(), lambda: 0, {1: "x"}, 1j, Point]
)
def test_a_value_of_unknown_content_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"input.deep\[0\] is a "):
        canonical({"deep": [value]})


@given(_VALUES)
def test_the_canonical_form_survives_json(value: Any) -> None:
    form = canonical(value)
    assert digest_of(json.loads(json.dumps(form))) == digest_of(form)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0, False), (None, "null"), (0.1, 0.1 + 1e-17 * 10), ([], {}), ("1", 1)],
)
def test_values_of_different_type_or_size_have_different_keys(one: Any, other: Any) -> None:
    assert digest_of(canonical(one)) != digest_of(canonical(other))


def test_a_numpy_integer_or_array_is_an_error() -> None:
    for value in (np.int64(1), np.zeros(2)):
        with pytest.raises(TypeError, match="cannot enter a cache key"):
            canonical(value)


class Open(BaseModel):
    """A section that takes keys it does not know."""

    model_config = ConfigDict(extra="allow")
    known: int = 0


class WithSet(BaseModel):
    """A section whose set has no order that lasts."""

    names: set[str] = {"a"}


def test_keys_that_a_section_does_not_know_count_too() -> None:
    assert canonical(Open(known=1, more=2)) == {"known": 1, "more": 2}  # type: ignore[call-arg]


def test_a_set_inside_a_section_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match=r"input\.names is a set"):
        canonical(WithSet())


def test_numbers_beyond_json_have_keys() -> None:
    digests = {digest_of(canonical(x)) for x in (math.inf, -math.inf, math.nan, "nan")}
    assert len(digests) == 4


def test_order_of_dict_keys_does_not_count() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_a_key_is_the_same_in_another_process() -> None:
    source = (
        "from alphaquant.config import RunConfig\n"
        "from alphaquant.store.keys import canonical, digest_of\n"
        "print(digest_of(canonical(RunConfig())))\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_long_digests_are_told_short() -> None:
    old, new = {"text.txt": "a" * 64}, {"text.txt": "b" * 64}
    assert differences(old, new) == {"text.txt": ("a" * 8, "b" * 8)}


def test_long_values_are_told_from_where_they_differ() -> None:
    menu = [f"format{index}" for index in range(40)]
    before, after = differences({"menu": menu}, {"menu": [*menu[:-1], "other"]})["menu"]
    assert before != after
    assert "format39" in before
    assert "other" in after
    assert max(len(before), len(after)) <= 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["section"].update(samples=128), {"section.samples": ("64", "128")}),
        (
            lambda d: d.update(ref={"kind": "alpha", "digest": "99887766aa"}),
            {"ref": ("11223344", "99887766")},
        ),
        (lambda d: d.pop("name"), {"name": ("x", "(none)")}),
        (lambda d: d.update(more=[1, 2]), {"more": ("(none)", "[1, 2]")}),
        (lambda d: None, {}),
    ],
)
def test_differences_are_named_and_short(
    change: Callable[[dict[str, Any]], Any], said: dict[str, tuple[str, str]]
) -> None:
    old = {
        "section": {"samples": 64, "seed": 0},
        "ref": {"kind": "alpha", "digest": "1122334455"},
        "name": "x",
    }
    new = json.loads(json.dumps(old))
    change(new)
    assert differences(old, new) == said
