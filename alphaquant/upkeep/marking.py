"""What gc must not take: which runs are kept, and every artifact that they or unfinished work need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from alphaquant.errors import StoreError
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.parallel import side_by_side
from alphaquant.store.records import KeyRecord
from alphaquant.store.remote import NotWhole
from alphaquant.store.runs import at_work
from alphaquant.upkeep.consequences import BLOCK, Name, name_of
from alphaquant.upkeep.soundness import refs_of, started


@dataclass(frozen=True)
class Keep:
    """Which runs are kept: those that any rule names, and all of them when there is no rule."""

    runs: int | None = None
    """The newest so many."""
    days: float | None = None
    """Those that began within so many days."""
    tags: tuple[str, ...] = ()
    """Those with one of these tags."""
    grace_hours: float = 24.0
    """Runs, and artifacts of no run, that are younger stay in any case."""


def kept_runs(manifests: Iterable[dict[str, Any]], keep: Keep) -> list[dict[str, Any]]:
    """The runs to keep, newest first. A run that is at work is always one of them."""
    newest = sorted(manifests, key=lambda manifest: str(manifest["run_id"]), reverse=True)
    now = datetime.now(UTC)
    all_of_them = keep.runs is None and keep.days is None and not keep.tags
    within = now - max(timedelta(hours=keep.grace_hours), timedelta(days=keep.days or 0.0))
    return [
        manifest
        for position, manifest in enumerate(newest)
        if all_of_them
        or position < (keep.runs or 0)
        or started(manifest) >= within
        or not {*manifest.get("tags", ())}.isdisjoint(keep.tags)
        or at_work(manifest)
    ]


def parts_of(store: ArtifactStore, refs: Iterable[ArtifactRef]) -> dict[Name, list[Name]]:
    """What each artifact is made of. Raises StoreError for one that does not tell any more."""

    def parts(ref: ArtifactRef) -> tuple[Name, list[Name]]:
        try:
            return name_of(ref), [name_of(child) for child in store.children(ref).values()]
        except (ValueError, AttributeError, NotWhole) as error:
            raise StoreError(
                f"artifact {ref} in {store.location} is damaged, so what it needs is not known. Nothing "
                "was removed; `alphaquant fsck` puts it aside."
            ) from error

    return {whole: children for whole, children in side_by_side(parts, refs) if children}


def marked(
    kept: Sequence[dict[str, Any]], records: Iterable[KeyRecord], parts: Mapping[Name, list[Name]]
) -> set[Name]:
    """What kept runs refer to, and finished blocks of a stage that none of them saw the end of."""
    names = {name_of(ref) for manifest in kept for ref in refs_of(manifest).values()}
    unfinished = [started(run) for run in kept if run.get("status") != "completed"]
    if unfinished:
        whole = {part for several in parts.values() for part in several}
        for record in records:
            if record.ref is None or not record.stage.endswith(BLOCK):
                continue
            when = datetime.fromisoformat(record.when).astimezone(UTC)
            if when >= min(unfinished) and name_of(record.ref) not in whole:
                names.add(name_of(record.ref))
    return names


def with_parts(names: Iterable[Name], parts: Mapping[Name, list[Name]]) -> set[Name]:
    """These artifacts and everything they are made of."""
    found: set[Name] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += parts.get(name, [])
    return found
