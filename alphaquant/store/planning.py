"""What a run would do, found by the same lookups as the run itself but computing nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import KeyRecord, explain, recent_records
from alphaquant.store.stage import Stage, lookup

PlannedState: TypeAlias = Literal["cached", "skipped", "run", "unknown"]
NOT_NEEDED = "artifact was removed; nothing that would run reads it"


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
    key: str = ""
    """Empty when an input is not known yet."""
    units: int = 0
    """Blocks of the known result."""
    reads: frozenset[str] = frozenset()
    """Stages whose artifacts it is given."""
    removed: Literal["whole", "parts"] | None = None
    """It would run only because its known artifact, or artifacts that this is made of, are gone."""


def plan_stage(
    stage: Stage, store: ArtifactStore, inputs: Mapping[str, Any], *, force: bool = False
) -> PlannedStage:
    """Look a stage up without running it."""
    last = next(iter(recent_records(store, stage.name, 1)), None)
    seconds = _whole_seconds(last)
    reads = frozenset(stages_in(inputs))
    waits_for = sorted(pending_in(inputs))
    if waits_for:
        state: PlannedState = "unknown" if last and not force else "run"
        reason = f"waits for {', '.join(waits_for)}: cached if nothing changes there"
        if state == "run":
            reason = "forced" if force else "first run"
        elif last and (edited := _edited(stage, store, last)):
            state, reason = "run", f"{edited}; waits for {', '.join(waits_for)}"
        return PlannedStage(stage.name, state, reason, seconds, Pending(stage.name), reads=reads)
    found = lookup(stage, store, inputs)
    record = found.record
    planned = PlannedStage(
        name=stage.name,
        state="cached",
        reason=record.standing() if record else "",
        seconds=_whole_seconds(record) if record else seconds,
        # a harmed or forced artifact comes out as before, so what follows can be planned already
        out=record.ref if record else Pending(stage.name),
        key=found.key,
        units=record.units if record else 0,
        reads=reads,
    )
    if force:
        return replace(planned, state="run", reason="forced")
    if found.miss is not None:
        removed = _removed(store, record.ref) if record and record.ref else None
        return replace(planned, state="run", reason=found.miss, removed=removed)
    if record and record.skipped:
        return replace(planned, state="skipped", reason=record.skipped)
    return planned


def _edited(stage: Stage, store: ArtifactStore, last: KeyRecord) -> str | None:
    """Which code makes a stage run whatever its inputs will be; None when today's has results already."""
    code = stage.code()
    if any(known.ingredients.get("code") == code for known in recent_records(store, stage.name)):
        return None
    return explain({"code": last.ingredients.get("code", {})}, {"code": code})


def spare_unread(
    planned: Sequence[PlannedStage], only_read: Collection[str] = ()
) -> list[PlannedStage]:
    """The plan with stages set to cached whose removed artifact nobody needs.

    A stage needs its artifacts when it will run, or may. Besides, every artifact is handed over to the
    user, though not the artifacts that it is made of; `only_read` names stages of which nothing is. What
    is damaged, not removed, is always made again.
    """
    revised: list[PlannedStage] = []
    read: set[str] = set()
    for stage in reversed(planned):
        unread = stage.name not in read
        if unread and (stage.removed == "parts" or (stage.removed and stage.name in only_read)):
            stage = replace(stage, state="cached", reason=NOT_NEEDED)
        if stage.state in ("run", "unknown"):
            read |= stage.reads
        revised.append(stage)
    return revised[::-1]


def pending_in(value: Any) -> set[str]:
    """Stages whose artifacts among these inputs are not known yet."""
    if isinstance(value, Pending):
        return {value.stage}
    return set().union(*(pending_in(part) for part in _parts(value)))


def stages_in(value: Any) -> set[str]:
    """Stages whose artifacts are among these inputs; an artifact's kind is the stage that made it."""
    if isinstance(value, Pending):
        return {value.stage}
    if isinstance(value, ArtifactRef):
        return {value.kind}
    return set().union(*(stages_in(part) for part in _parts(value)))


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def _removed(store: ArtifactStore, ref: ArtifactRef) -> Literal["whole", "parts"] | None:
    """Whether an artifact, or artifacts it is made of, are gone; None when something is damaged."""
    problem = store.problem(ref) or ""
    if problem == "missing":
        return "whole"
    if not problem.startswith("incomplete"):
        return None
    problems = {store.problem(child) for child in store.children(ref).values()}
    return "parts" if problems <= {None, "missing"} else None


def _whole_seconds(record: KeyRecord | None) -> float | None:
    """How long a stage takes from its beginning: a resumed one found some of its blocks."""
    if record is None:
        return None
    return record.seconds * record.units / record.units_ran if record.units_ran else record.seconds
