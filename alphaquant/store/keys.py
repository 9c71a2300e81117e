"""The key of a computation: a digest of the code and the content of the inputs, and how two keys differ.

A value whose content is unknown (a bare path, a set, an object) is an error, never a silent miss or hit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


@runtime_checkable
class HasCacheIdentity(Protocol):
    """A value that says itself what of it enters a key: content digests, never places."""

    def cache_identity(self) -> dict[str, str]:
        """The part that decides results."""


def canonical(value: Any, where: str = "input") -> Json:
    """`value` as JSON that is equal for equal content in every process. Raises TypeError otherwise."""
    if isinstance(value, Enum):
        return canonical(value.value, where)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else f"float {value!r}"
    if isinstance(value, HasCacheIdentity):
        return {name: canonical(part, where) for name, part in value.cache_identity().items()}
    if isinstance(value, BaseModel):
        names = [*type(value).model_fields, *(value.model_extra or {})]
        return {name: canonical(getattr(value, name), f"{where}.{name}") for name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: canonical(getattr(value, name), f"{where}.{name}") for name in names}
    if isinstance(value, (list, tuple)):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: canonical(item, f"{where}.{name}") for name, item in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__}, whose content cannot enter a cache key; pass numbers, text, "
        "lists, dicts with text keys, config sections or references"
    )


def digest_of(ingredients: Json) -> str:
    """The key: sha256 of the ingredients, in hex."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Json, new: Json, where: str = "") -> dict[str, tuple[str, str]]:
    """What changed between two canonical values: short old and new text by dotted name."""
    if isinstance(old, dict) and isinstance(new, dict) and "digest" not in {*old, *new}:
        found: dict[str, tuple[str, str]] = {}
        for name in sorted({*old, *new}):
            inner = f"{where}.{name}" if where else name
            if name not in old or name not in new:
                found[inner] = _contrast(old.get(name, _ABSENT), new.get(name, _ABSENT))
            else:
                found |= differences(old[name], new[name], inner)
        return found
    return {} if digest_of(old) == digest_of(new) else {where: _contrast(old, new)}


_ABSENT = "(none)"
_WIDTH = 60
_DIGEST = re.compile(r"[0-9a-f]{32,}")


def _contrast(old: Json, new: Json) -> tuple[str, str]:
    """Both values as short text; long ones from where they begin to differ."""
    before, after = _text(old), _text(new)
    if max(len(before), len(after)) <= _WIDTH:
        return before, after
    pairs = enumerate(zip(before, after, strict=False))
    same = next((index for index, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(0, same - _WIDTH // 4)
    return _cut(before, start), _cut(after, start)


def _cut(text: str, start: int) -> str:
    head, rest = ("..." if start else ""), text[start:]
    room = _WIDTH - len(head)
    return f"{head}{rest}" if len(rest) <= room else f"{head}{rest[: room - 3]}..."


def _text(value: Json) -> str:
    if isinstance(value, dict) and "digest" in value:
        return str(value["digest"])[:8]
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:8] if _DIGEST.fullmatch(text) else text
