"""Stage: one cached step. Look the key up, or compute; keep the artifact; say why.

The engine knows neither Prefect nor models: a stage's body is a function that fills a folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from alphaquant.clock import Clock, listening
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore, Draft
from alphaquant.store.edits import CodeGuard
from alphaquant.store.fingerprint import code_fingerprint
from alphaquant.store.keys import canonical
from alphaquant.store.place import Place
from alphaquant.store.records import (
    KeyRecord,
    key_of,
    load_record,
    save_record,
    why_new,
)
from alphaquant.store.retry import patiently
from alphaquant.store.units import BlockCache
from alphaquant.store.usage import note_use
from alphaquant.work import Spent, since

OTHER = "other"
"""Where a record has the seconds that were in no step."""
State = Literal["ran", "cached", "skipped"]


@dataclass(frozen=True)
class Skipped:
    """What a body returns when the stage does not apply; remembered like a result."""

    message: str


@dataclass(frozen=True)
class Stage:
    """A named step whose result is one artifact.

    `body(out, store, **inputs)` writes files into `out`; `store` is a `Workbench`.
    """

    name: str
    body: Callable[..., Skipped | None]
    module: str
    """Where its code starts: the fingerprint is that module's import closure."""
    unkeyed: tuple[str, ...] = ("execution",)
    """Inputs that say where and how fast it runs, not what comes out."""
    gpu: bool = False
    """Whether a GPU makes it faster: such stages are dispatched to the GPU pool."""

    def code(self) -> dict[str, str]:
        """Fingerprint of everything the stage can reach, by module."""
        return code_fingerprint(self.module)

    def ingredients(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the key is made of. Raises TypeError for an input whose content is unknown."""
        keyed = {
            name: canonical(value, f"input {name!r} of stage {self.name}")
            for name, value in inputs.items()
            if name not in self.unkeyed
        }
        return {"stage": self.name, "code": self.code(), "inputs": keyed}


class Workbench:
    """What a stage's body may use of the store: finished inputs, and blocks of its own."""

    def __init__(self, artifacts: ArtifactStore, stage: Stage, *, refresh: bool = False) -> None:
        self.artifacts = artifacts
        self.guard = CodeGuard(stage.code())
        self.blocks: BlockCache | None = None
        self.caches: list[BlockCache] = []
        """`blocks`, and those before it that the body asked for or that a failed attempt used."""
        self._stage = stage
        self._refresh = refresh
        self._made: set[str] = set()

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of a finished artifact."""
        return self.artifacts.path(ref)

    def block_paths(self, ref: ArtifactRef) -> list[Path]:
        """Folders of the blocks that an artifact lists, in order."""
        children = self.artifacts.children(ref)
        return [self.artifacts.path(children[name]) for name in sorted(children)]

    def block_cache(self, **static: Any) -> BlockCache:
        """The cache of this stage's blocks; `static` is what all of them depend on."""
        kind = f"{self._stage.name}-block"
        self.close()
        self.blocks = BlockCache(
            self.artifacts,
            kind,
            self._stage.code(),
            static,
            made=self._made if self._refresh else None,
            check=self.guard.check,
        )
        self.caches.append(self.blocks)
        return self.blocks

    def close(self) -> None:
        """Let go of the block that was being computed."""
        if self.blocks:
            self.blocks.close()


@dataclass(frozen=True)
class StageResult:
    """What happened to a stage, why, and where its artifact is."""

    name: str
    state: State
    reason: str
    seconds: float
    key: str
    ref: ArtifactRef | None
    units_ran: int = 0
    units_cached: int = 0
    place: Place | None = None
    """Where and when it was computed."""


Claim: TypeAlias = Callable[[Stage, Mapping[str, Any]], AbstractContextManager[Place]]
"""Takes what a stage needs for computing (a device) and tells where that is."""


def _on_the_spot(stage: Stage, inputs: Mapping[str, Any]) -> AbstractContextManager[Place]:
    return nullcontext(Place())


@dataclass(frozen=True)
class Lookup:
    """What the store knows about a key: a sound record, or why the stage has to run."""

    key: str
    ingredients: dict[str, Any]
    record: KeyRecord | None
    """The record of this very key, even when its artifact is harmed."""
    miss: str | None
    """Why it must run; None for a hit."""


def lookup(
    stage: Stage, store: ArtifactStore, inputs: Mapping[str, Any], *, why: str | None = None
) -> Lookup:
    """Find the result of a stage for these inputs and check that it is unharmed.

    `why` is said of an unknown key; without it the stage's recent records are read to find out what changed.
    """
    ingredients = stage.ingredients(inputs)
    key = key_of(ingredients)
    record = load_record(store, stage.name, key)
    if record is None:
        return Lookup(key, ingredients, None, why or why_new(store, stage.name, ingredients))
    if record.ref:
        note_use(store, record.ref)
    problem = store.problem(record.ref) if record.ref else None
    return Lookup(key, ingredients, record, f"artifact {problem}" if problem else None)


def run_stage(
    stage: Stage,
    store: ArtifactStore,
    inputs: Mapping[str, Any],
    *,
    force: bool = False,
    claim: Claim = _on_the_spot,
) -> StageResult:
    """Return the stage's artifact for these inputs, computing it only when it must be.

    Two processes that want the same key at once compute it once. `claim` is entered only to compute. An
    exception of the body passes through and leaves nothing behind but finished blocks.
    """
    started = time.perf_counter()
    found = lookup(stage, store, inputs)
    if found.miss is None and not force:
        return _hit(found, stage, started)
    with store.locked(f"{stage.name}-{found.key}", stage.name):
        if not force:
            found = lookup(stage, store, inputs, why=found.miss)
            if found.miss is None:
                return _hit(found, stage, started, "another process computed it meanwhile")
        with claim(stage, inputs) as place:
            return _compute(stage, store, inputs, found, place, force=force)


def _hit(found: Lookup, stage: Stage, started: float, reason: str | None = None) -> StageResult:
    assert found.record is not None
    record = found.record
    return StageResult(
        name=stage.name,
        state="skipped" if record.skipped else "cached",
        reason=record.skipped or reason or record.standing(),
        seconds=time.perf_counter() - started,
        key=found.key,
        ref=record.ref,
        units_cached=record.units,
        place=record.place,
    )


def _own(clock: Clock, caches: Sequence[BlockCache], seconds: float) -> dict[str, Spent]:
    """What a stage spent outside of its blocks, with what was in no step as `other`."""
    steps: dict[str, Spent] = {str(step): spent for step, spent in clock.spent().items()}
    for cache in caches:
        steps = since(steps, cache.spent)
    named = sum(spent.seconds for spent in steps.values()) + sum(c.seconds for c in caches)
    return steps | {OTHER: Spent(max(0.0, seconds - named))}


def _compute(
    stage: Stage,
    store: ArtifactStore,
    inputs: Mapping[str, Any],
    found: Lookup,
    place: Place,
    *,
    force: bool,
) -> StageResult:
    started = time.perf_counter()
    place = place.begun()
    bench = Workbench(store, stage, refresh=force)

    def attempt(given: dict[str, Any]) -> tuple[Draft, Skipped | None]:
        try:
            with store.draft(stage.name) as draft:
                outcome = stage.body(draft.path, bench, **given)
                if isinstance(outcome, Skipped):
                    draft.discard()
                return draft, outcome
        finally:
            bench.close()

    with listening(Clock()) as clock:
        draft, outcome = patiently(attempt, inputs, stage.name)
    bench.guard.check()
    skipped = outcome.message if outcome else None
    seconds = time.perf_counter() - started
    place = place.finished()
    blocks = bench.blocks
    record = KeyRecord(
        stage=stage.name,
        key=found.key,
        ingredients=found.ingredients,
        ref=draft.ref,
        skipped=skipped,
        units=len(blocks.refs) if blocks else 0,
        units_ran=blocks.ran if blocks else 0,
        unit_keys=tuple(blocks.keys) if blocks else (),
        seconds=seconds,
        steps=_own(clock, bench.caches, seconds),
        place=place,
    )
    save_record(store, record)
    return StageResult(
        name=stage.name,
        state="skipped" if skipped else "ran",
        reason=skipped or ("forced" if force else str(found.miss)),
        seconds=seconds,
        key=found.key,
        ref=draft.ref,
        units_ran=blocks.ran if blocks else 0,
        units_cached=blocks.cached if blocks else 0,
        place=place,
    )
