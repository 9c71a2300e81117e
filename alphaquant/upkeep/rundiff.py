"""What differs between two runs: what they were told, which code they used, what came out, what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import KeyRecord, changed_inputs, changed_modules, load_record
from alphaquant.upkeep.history import RunManifest

Pair: TypeAlias = tuple[Any, Any]
"""A value of the first run and of the second; None where a run has none."""


@dataclass(frozen=True)
class StageDiff:
    """One stage in two runs."""

    state: Pair
    seconds: Pair
    """How long the result took to compute, in this run or an earlier one."""
    where: Pair
    key: Pair
    artifact: Pair
    """Digests."""
    inputs: dict[str, tuple[str, str]]
    """Short old and new text of inputs that differ, by dotted name."""
    code: tuple[str, ...]
    """Modules that differ."""
    recorded: bool
    """Whether the store still tells what went into both results."""

    @property
    def differs(self) -> bool:
        """Whether the results, or what they were made of, are not the same."""
        return any(pair[0] != pair[1] for pair in (self.key, self.artifact))


@dataclass(frozen=True)
class RunDiff:
    """Two runs side by side; equal values are left out unless they were asked for."""

    facts: dict[str, Pair]
    config: dict[str, Pair]
    stages: dict[str, StageDiff]
    scores: dict[str, Pair]
    environment: dict[str, Pair]


def diff_runs(
    store: ArtifactStore, a: RunManifest, b: RunManifest, *, everything: bool = False
) -> RunDiff:
    """Compare two runs; `everything` keeps what is equal too."""
    names = dict.fromkeys(entry.name for run in (a, b) for entry in run.stages)
    stages = {name: _stage(store, a, b, name) for name in names}
    return RunDiff(
        facts=_pairs(_facts(a), _facts(b), everything),
        config=_pairs(dict(_leaves(a.config)), dict(_leaves(b.config)), everything),
        stages={name: diff for name, diff in stages.items() if everything or diff.differs},
        scores=_pairs(dict(_leaves(a.scores)), dict(_leaves(b.scores)), everything),
        environment=_pairs(a.environment, b.environment, everything),
    )


def _facts(run: RunManifest) -> dict[str, Any]:
    return {
        "model": run.model,
        "model digest": run.model_ref.get("digest"),
        "status": run.status,
        "tags": ", ".join(run.tags) or None,
        "bits per weight": run.bits_per_weight,
        "seconds": round(sum(entry.seconds for entry in run.stages), 3),
    }


def _stage(store: ArtifactStore, a: RunManifest, b: RunManifest, name: str) -> StageDiff:
    entries = a.stage(name), b.stage(name)
    records = [load_record(store, name, entry.key) if entry else None for entry in entries]
    first, second = records
    known = first is not None and second is not None
    return StageDiff(
        state=_pair(entry and entry.state for entry in entries),
        seconds=_pair(
            record.seconds if record else entry and entry.seconds
            for entry, record in zip(entries, records, strict=True)
        ),
        where=_pair(
            _where(record) or (entry and entry.where) or None
            for entry, record in zip(entries, records, strict=True)
        ),
        key=_pair(entry and entry.key for entry in entries),
        artifact=_pair(run.refs[name].digest if name in run.refs else None for run in (a, b)),
        inputs=changed_inputs(first.ingredients, second.ingredients) if first and second else {},
        code=changed_modules(first.ingredients, second.ingredients) if first and second else (),
        recorded=known,
    )


def _where(record: KeyRecord | None) -> str | None:
    place = record.place if record else None
    return f"{place.device} on {place.host}" if place else None


def _pair(values: Iterator[Any]) -> Pair:
    first, second = values
    return first, second


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any], everything: bool) -> dict[str, Pair]:
    names = dict.fromkeys((*a, *b))
    pairs = {name: (a.get(name), b.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if everything or pair[0] != pair[1]}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside nested dicts, by dotted name."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
