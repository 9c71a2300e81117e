"""Remove artifacts that no kept run refers to and nobody used lately: mark from run manifests, then sweep.

Whatever was used within the grace period, or since a process that still lives opened the store, stays, so
runs may be at work meanwhile. Key records outlive their artifacts for a while: they explain what changed, and
let a plan see through an intermediate result that is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alphaquant.errors import StoreError
from alphaquant.progress import track
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.files import writing_to
from alphaquant.store.records import KeyRecord
from alphaquant.store.usage import clock, oldest_user, removing, used_since
from alphaquant.upkeep.consequences import Name, name_of
from alphaquant.upkeep.inventory import (
    Stored,
    artifacts,
    empty_folders,
    files_of,
    key_files,
    left_over,
    logs,
    quarantined,
    root_of,
    run_files,
)
from alphaquant.upkeep.marking import Keep, kept_runs, marked, parts_of, with_parts
from alphaquant.upkeep.soundness import manifest_problem, record_problem

_BATCH = 64
_RECORDS_PER_STAGE = 200
_RECORD_DAYS = 90.0
_LOG_DAYS = 30.0
_HOUR, _DAY = 3600.0, 86400.0


@dataclass
class Kind:
    """Artifacts of one kind: how many go and stay, and their bytes."""

    kind: str
    removed: int = 0
    freed: int = 0
    kept: int = 0
    kept_bytes: int = 0


@dataclass
class Report:
    """What goes and what stays; what went, when `deleted`."""

    store: str
    deleted: bool
    kinds: list[Kind]
    runs_kept: list[str]
    runs_removed: list[str]
    records_removed: int
    quarantined: int
    """Things that fsck has put aside, and that stay unless they were asked for."""
    left_over: dict[str, int] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """How many artifacts go."""
        return sum(kind.removed for kind in self.kinds)

    @property
    def freed(self) -> int:
        """Bytes that nothing else holds: files with a hard link elsewhere, such as products, do not count."""
        return sum(kind.freed for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """What `alphaquant gc --json` prints."""
        return {**asdict(self), "removed": self.removed, "freed": self.freed}


def gc(
    store: ArtifactStore,
    keep: Keep | None = None,
    *,
    delete: bool = False,
    quarantine: bool = False,
) -> Report:
    """Find what may go, and remove it when `delete`; what fsck put aside only with `quarantine`.

    Raises UserError when there is no store or it may not be written, StoreError when a run manifest or an
    artifact is damaged, so that what must stay is not known.
    """
    root, keep = root_of(store, "gc"), keep or Keep()
    now = clock(root) if delete else time.time_ns()
    cutoff = min(now - int(keep.grace_hours * _HOUR * 1e9), oldest_user(root, tidy=delete) or now)
    manifests = list(_readable(run_files(root)))
    kept = kept_runs(manifests, keep)
    records = list(_records(store, root))
    found = artifacts(root)
    parts = parts_of(store, found)
    used = [name_of(stored.ref) for stored in found if _used(stored, cutoff)]
    stay = with_parts([*marked(kept, [record for _, record in records], parts), *used], parts)
    # a whole goes before its parts: one without them would look damaged
    garbage = sorted(
        (stored for stored in found if name_of(stored.ref) not in stay),
        key=lambda stored: name_of(stored.ref) not in parts,
    )
    sizes = {stored: list(files_of(stored.folder).values()) for stored in found}
    if delete:
        garbage = _sweep(root, garbage, cutoff)
    gone = {name_of(stored.ref) for stored in garbage}
    runs_kept = [str(manifest["run_id"]) for manifest in kept]
    runs_removed = sorted({str(manifest["run_id"]) for manifest in manifests} - {*runs_kept})
    outdated = _outdated(store, records, gone)
    remains = left_over(root) | {"old logs": _older(logs(root), _LOG_DAYS)}
    aside = quarantined(root)
    if delete:
        _remove(root, outdated)
        _remove(root, (root / "runs" / f"{run_id}.json" for run_id in runs_removed))
        _remove(root, (path for paths in remains.values() for path in paths))
        _remove(root, aside if quarantine else ())
        _remove_empty(root)
    return Report(
        store=store.location,
        deleted=delete,
        kinds=_by_kind(sizes, gone),
        runs_kept=runs_kept,
        runs_removed=runs_removed,
        records_removed=len(outdated),
        quarantined=len(aside),
        left_over={what: len(paths) for what, paths in remains.items() if paths},
    )


def _readable(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        manifest = manifest_problem(path)
        if isinstance(manifest, str):
            raise StoreError(
                f"the run manifest {path} is {manifest}, so what that run needs is not known. Nothing was "
                "removed; `alphaquant fsck` puts it aside."
            )
        if manifest is not None:
            yield manifest


def _records(store: ArtifactStore, root: Path) -> Iterator[tuple[Path, KeyRecord]]:
    for path in key_files(root):
        record = record_problem(store, path)
        if isinstance(record, KeyRecord):
            yield path, record


def _used(stored: Stored, cutoff: int) -> bool:
    try:
        return used_since(stored.folder, cutoff)
    except OSError:
        return False


def _sweep(root: Path, garbage: list[Stored], cutoff: int) -> list[Stored]:
    """Take away what is still unused; returns that."""
    taken: list[Stored] = []
    (root / "tmp").mkdir(exist_ok=True)
    for start in track(range(0, len(garbage), _BATCH), "batches", -(-len(garbage) // _BATCH)):
        graves = []
        with writing_to(root), removing(root):
            for stored in garbage[start : start + _BATCH]:
                grave = root / "tmp" / uuid.uuid4().hex
                with contextlib.suppress(FileNotFoundError):
                    if not used_since(stored.folder, cutoff):
                        stored.folder.rename(grave)
                        graves.append(grave)
                        taken.append(stored)
        _remove(root, graves)
    return taken


def _outdated(
    store: ArtifactStore, records: list[tuple[Path, KeyRecord]], gone: set[Name]
) -> list[Path]:
    """Old records of artifacts that are not there, but for the newest of each stage."""
    dated = [(_written(path), path, record) for path, record in records]
    seen: Counter[str] = Counter()
    outdated = []
    for when, path, record in sorted(dated, key=lambda item: item[0], reverse=True):
        seen[record.stage] += 1
        if record.ref is None or seen[record.stage] <= _RECORDS_PER_STAGE:
            continue
        missing = name_of(record.ref) in gone or not store.place(record.ref).exists()
        if missing and when < time.time() - _RECORD_DAYS * _DAY:
            outdated.append(path)
    return outdated


def _older(paths: Iterable[Path], days: float) -> list[Path]:
    return [path for path in paths if _written(path) < time.time() - days * _DAY]


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()


def _remove(root: Path, paths: Iterable[Path]) -> None:
    with writing_to(root):
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _remove_empty(root: Path) -> None:
    """Remove folders that nothing is in; a run that is about to put something there is kept waiting."""
    with removing(root):
        for folder in empty_folders(root):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _by_kind(sizes: dict[Stored, list[os.stat_result]], gone: set[Name]) -> list[Kind]:
    kinds: dict[str, Kind] = {}
    links: Counter[tuple[int, int]] = Counter()
    for stored, files in sizes.items():
        kind = kinds.setdefault(stored.kind, Kind(stored.kind))
        if name_of(stored.ref) not in gone:
            kind.kept += 1
            kind.kept_bytes += sum(file.st_size for file in files)
            continue
        kind.removed += 1
        for file in files:
            links[file.st_dev, file.st_ino] += 1
            if links[file.st_dev, file.st_ino] == file.st_nlink:
                kind.freed += file.st_size
    return list(kinds.values())
