"""Key records: which artifact a key led to, what went into the key, and why a key is new.

`keys/<stage>/<key>.json`, one small file per computation ever done.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.keys import differences, digest_of
from alphaquant.store.place import Place
from alphaquant.work import Spent

_COMPARED = 50
_SHOWN = 3
_PACKAGES = ("alphaquant", "torch", "transformers", "safetensors", "numpy", "lm-eval", "prefect")


@functools.cache
def environment() -> dict[str, str]:
    """Versions that a result was made with; recorded, in no key."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """This moment as records state it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def local_time(when: str) -> str:
    """A moment as records state it, on this machine's clock and to the minute."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(when).astimezone().strftime("%Y-%m-%d %H:%M")
    return when


class KeyRecord(BaseModel):
    """One computation that was done: its ingredients and what came out."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    ingredients: dict[str, Any]
    """`code`: hash by module. `inputs`: canonical inputs."""
    ref: ArtifactRef | None = None
    skipped: str | None = None
    """Why the stage had nothing to do for these inputs."""
    units: int = 0
    """Blocks the stage works through, each an artifact of its own."""
    units_ran: int = 0
    """How many of them were computed then, and not found."""
    unit_keys: tuple[str, ...] = ()
    """Keys of the blocks, in order."""
    seconds: float = 0.0
    steps: dict[str, Spent] = {}
    """Where the seconds went; of a stage, without those of its blocks, whose records have their own."""
    place: Place | None = None
    """Where and when it was computed."""
    when: str = Field(default_factory=now)
    environment: dict[str, str] = Field(default_factory=environment)
    accepted_from: str | None = None
    """Key of the result that a person took for this key's too, although the code had changed."""
    accepted_on: str | None = None
    """When that was, as in `when`."""
    accepted_code: tuple[str, ...] = ()
    """Modules whose code differs from the code that computed the result."""

    def standing(self) -> str:
        """Why the result holds: nothing changed since it was computed, or somebody accepted it."""
        if self.accepted_on is None:
            return f"unchanged since {local_time(self.when)}"
        modules = some(self.accepted_code)
        return f"accepted on {local_time(self.accepted_on)} although code changed: {modules}"


def load_record(store: ArtifactStore, stage: str, key: str) -> KeyRecord | None:
    """The record of one key; None when it is absent, torn or not what was written for this key."""
    return _checked(stage, key, store.read_json(_file(stage, key)))


def save_record(store: ArtifactStore, record: KeyRecord) -> None:
    """Write a record, whole."""
    store.write_json(_file(record.stage, record.key), record.model_dump(mode="json"))


def recent_records(
    store: ArtifactStore, stage: str, count: int | None = _COMPARED
) -> list[KeyRecord]:
    """The newest records of a stage, newest first; all of them when `count` is None."""
    return load_records(store, stage, store.names(f"keys/{stage}")[:count])


def load_records(store: ArtifactStore, stage: str, keys: Sequence[str]) -> list[KeyRecord]:
    """The records of some keys in their order, without those that `load_record` would not give."""
    values = store.read_many([_file(stage, key) for key in keys])
    found = (_checked(stage, key, value) for key, value in zip(keys, values, strict=True))
    return [record for record in found if record]


def why_new(store: ArtifactStore, stage: str, ingredients: dict[str, Any]) -> str:
    """Why these ingredients led to no known result: the difference to the most similar recent record."""
    records = recent_records(store, stage)
    if not records:
        return "first run"
    nearest = min(records, key=lambda record: _distance(record.ingredients, ingredients))
    return explain(nearest.ingredients, ingredients)


def explain(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The difference between two keys' ingredients in one line."""
    inputs = [
        f"{name} {before} -> {after}" for name, (before, after) in changed_inputs(old, new).items()
    ]
    modules = changed_modules(old, new)
    parts = []
    if inputs:
        parts.append(f"changed: {some(inputs)}")
    if modules:
        parts.append(f"code changed: {some(modules)}")
    return "; ".join(parts) or "first run"


def changed_inputs(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Short old and new text of every input that differs, by dotted name."""
    return differences(old.get("inputs"), new.get("inputs"))


def changed_modules(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    """Names of the modules and data files that differ, came or went."""
    before, after = old.get("code", {}), new.get("code", {})
    return tuple(
        module for module in sorted({*before, *after}) if before.get(module) != after.get(module)
    )


def some(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _file(stage: str, key: str) -> str:
    return f"keys/{stage}/{key}.json"


def _checked(stage: str, key: str, value: Any) -> KeyRecord | None:
    try:
        record = KeyRecord.model_validate(value)
    except ValidationError:
        return None
    named = (record.stage, record.key, key_of(record.ingredients))
    return record if named == (stage, key, key) else None


def _distance(old: dict[str, Any], new: dict[str, Any]) -> int:
    return len(changed_inputs(old, new)) + len(changed_modules(old, new))


def key_of(ingredients: dict[str, Any]) -> str:
    """The short form of a key that names files and appears in summaries: 160 of the 256 bits."""
    return digest_of(ingredients)[:40]
