"""What a run would do, found by the same lookups as the run itself but computing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import recent_records
from alphaquant.store.stage import Stage, lookup

PlannedState: TypeAlias = Literal["cached", "skipped", "run", "unknown"]


@dataclass(frozen=True)
class Pending:
    """Stands for the artifact of a stage that will run: its content is not known yet."""

    stage: str


@dataclass(frozen=True)
class PlannedStage:
    """What would happen to a stage.

    `unknown`: an input of it will be computed; it is a hit if that input comes out unchanged.
    """

    name: str
    state: PlannedState
    reason: str
    seconds: float | None
    """How long it took the last time; None when it never ran."""
    out: ArtifactRef | Pending | None
    """What later stages get."""


def plan_stage(
    stage: Stage, store: ArtifactStore, inputs: Mapping[str, Any], *, force: bool = False
) -> PlannedStage:
    """Look a stage up without running it."""
    last = next(iter(recent_records(store, stage.name, 1)), None)
    seconds = last.seconds if last else None
    waits_for = sorted(_pending(inputs))
    if waits_for:
        state: PlannedState = "unknown" if last and not force else "run"
        reason = f"waits for {', '.join(waits_for)}: cached if nothing changes there"
        if state == "run":
            reason = "forced" if force else "first run"
        return PlannedStage(stage.name, state, reason, seconds, Pending(stage.name))
    found = lookup(stage, store, inputs)
    record = found.record
    # a harmed or forced artifact comes out as before, so what follows can be planned already
    out = record.ref if record else Pending(stage.name)
    seconds = record.seconds if record else seconds
    if force or found.miss is not None:
        return PlannedStage(stage.name, "run", "forced" if force else str(found.miss), seconds, out)
    assert record is not None
    if record.skipped:
        return PlannedStage(stage.name, "skipped", record.skipped, seconds, None)
    return PlannedStage(stage.name, "cached", "unchanged", seconds, out)


def _pending(value: Any) -> set[str]:
    if isinstance(value, Pending):
        return {value.stage}
    parts = value.values() if isinstance(value, Mapping) else ()
    return set().union(*(_pending(part) for part in parts))
