"""Key records: which artifact a key led to, what went into the key, and why a key is new.

`keys/<stage>/<key>.json`, one small file per computation ever done.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.keys import differences, digest_of

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
    seconds: float = 0.0
    when: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: dict[str, str] = Field(default_factory=environment)


def load_record(store: ArtifactStore, stage: str, key: str) -> KeyRecord | None:
    """The record of one key; None when it is absent or torn."""
    value = store.read_json(f"keys/{stage}/{key}.json")
    try:
        return None if value is None else KeyRecord.model_validate(value)
    except ValidationError:
        return None


def save_record(store: ArtifactStore, record: KeyRecord) -> None:
    """Write a record, whole."""
    store.write_json(f"keys/{record.stage}/{record.key}.json", record.model_dump(mode="json"))


def recent_records(store: ArtifactStore, stage: str, count: int = _COMPARED) -> list[KeyRecord]:
    """The newest records of a stage, newest first."""
    newest = store.names(f"keys/{stage}")[:count]
    return [record for key in newest if (record := load_record(store, stage, key))]


def why_new(store: ArtifactStore, stage: str, ingredients: dict[str, Any]) -> str:
    """Why these ingredients led to no known result: the difference to the most similar recent record."""
    records = recent_records(store, stage)
    if not records:
        return "first run"
    nearest = min(records, key=lambda record: len(_changes(record.ingredients, ingredients)))
    return explain(nearest.ingredients, ingredients)


def explain(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The difference between two keys' ingredients in one line."""
    changes = _changes(old, new)
    inputs = [
        f"{name.removeprefix('inputs.')} {before} -> {after}"
        for name, (before, after) in changes.items()
        if name.startswith("inputs.")
    ]
    modules = [name.removeprefix("code.") for name in changes if name.startswith("code.")]
    parts = []
    if inputs:
        parts.append(f"changed: {_some(inputs)}")
    if modules:
        parts.append(f"code changed: {_some(modules)}")
    return "; ".join(parts) or "first run"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = differences(old.get("inputs"), new.get("inputs"), "inputs")
    code_before, code_now = old.get("code", {}), new.get("code", {})
    for module in sorted({*code_before, *code_now}):
        if code_before.get(module) != code_now.get(module):
            found[f"code.{module}"] = (code_before.get(module, ""), code_now.get(module, ""))
    return found


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def key_of(ingredients: dict[str, Any]) -> str:
    """The short form of a key that names files and appears in summaries: 160 of the 256 bits."""
    return digest_of(ingredients)[:40]
