"""Rows of a config that speak of linears by name, regular expression or glob: which one comes first. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any


def first_match(
    rows: Iterable[tuple[str | re.Pattern[str], Any]],
) -> Callable[[str, Any], Any]:
    """What stands in the first row whose name is a linear's own or whose pattern matches it, else a default.

    Names are looked up: plans for single experts have tens of thousands of them.
    """
    kept = list(rows)
    names: dict[str, int] = {}
    patterns: list[tuple[int, re.Pattern[str]]] = []
    for at, (key, _) in enumerate(kept):
        if isinstance(key, str):
            names.setdefault(key, at)
        else:
            patterns.append((at, key))

    def find(name: str, default: Any) -> Any:
        named = names.get(name, len(kept))
        matching = (at for at, pattern in patterns if at < named and pattern.match(name))
        at = next(matching, named)
        return kept[at][1] if at < len(kept) else default

    return find


_NAMES = re.compile(r"\^((?:\w|\\.)*)(?:\((\w+(?:\|\w+)*)\))?\$")
"""An escaped name between `^` and `$`, or several that differ in their ends: `^a\\.(b|c)$`."""


def names_or_pattern(expression: str) -> list[str] | list[re.Pattern[str]]:
    """The names that a regular expression stands for where it lists them, as ours do; else the expression."""
    found = _NAMES.fullmatch(expression)
    stem = "" if found is None else re.sub(r"\\(.)", r"\1", found[1])
    if found is None or re.escape(stem) != found[1]:
        return [re.compile(expression)]
    return [stem + end for end in (found[2] or "").split("|")]


def name_or_glob(glob: str) -> str | re.Pattern[str]:
    """The name that a glob is, or the regular expression that it stands for."""
    return re.compile(fnmatch.translate(glob)) if re.search(r"[*?\[]", glob) else glob
