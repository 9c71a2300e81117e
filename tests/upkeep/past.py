"""Runs and key records of long ago."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import KeyRecord, key_of, save_record
from alphaquant.store.runs import run_ids, save_run


def old_run(store: ArtifactStore, refs: Sequence[ArtifactRef], days_ago: float, **more: Any) -> str:
    """A run that made these artifacts; returns its id."""
    began = datetime.now(UTC) - timedelta(days=days_ago)
    manifest = {
        "run_id": f"{began:%Y%m%d-%H%M%S}-{len(run_ids(store)):03d}",
        "started": began.isoformat(),
        "status": "completed",
        "refs": {f"stage-{index}": ref.model_dump() for index, ref in enumerate(refs)},
    }
    save_run(store, manifest | more)
    return str(manifest["run_id"])


def old_record(
    store: ArtifactStore, ref: ArtifactRef, stage: str, number: int, days_ago: float
) -> str:
    """A key that led to the artifact; returns the name of its file, whose own time is of now."""
    ingredients = {"stage": stage, "inputs": {"index": number}}
    when = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="seconds")
    key = key_of(ingredients)
    record = KeyRecord(stage=stage, key=key, ingredients=ingredients, ref=ref, when=when)
    save_record(store, record)
    return f"keys/{stage}/{key}.json"
