"""Remove artifacts that no kept run refers to and nobody used lately: mark from run manifests, then sweep.

Whatever was used within the grace period, or since a process that still lives opened the store, stays, so
runs may be at work meanwhile. Key records outlive their artifacts for a while: they explain what changed, and
let a plan see through an intermediate result that is gone. `gc_bucket.py` does the same in a bucket.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import KeyRecord
from alphaquant.store.remote import RemoteStore
from alphaquant.upkeep.consequences import Name, name_of
from alphaquant.upkeep.gc_bucket import gc_bucket
from alphaquant.upkeep.gc_report import (
    DAY,
    LOG_DAYS,
    RECORD_DAYS,
    RECORDS_PER_STAGE,
    Report,
    unreadable,
)
from alphaquant.upkeep.inventory import (
    artifacts,
    files_of,
    job_files,
    key_files,
    left_over,
    logs,
    quarantined,
    root_of,
    run_files,
)
from alphaquant.upkeep.marking import Keep, kept_runs, marked, parts_of, with_parts
from alphaquant.upkeep.soundness import manifest_problem, record_problem
from alphaquant.upkeep.sweeping import (
    by_kind,
    ended_jobs,
    moments,
    older,
    remove,
    remove_empty,
    sweep,
    used,
    written,
)


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
    keep = keep or Keep()
    if isinstance(store, RemoteStore):
        return gc_bucket(store, keep, delete=delete, quarantine=quarantine)
    root = root_of(store)
    _, cutoff = moments(root, keep.grace_hours, delete=delete)
    manifests = list(_readable(run_files(root)))
    kept = kept_runs(manifests, keep)
    records = list(_records(store, root))
    found = artifacts(root)
    parts = parts_of(store, [stored.ref for stored in found])
    in_use = [name_of(stored.ref) for stored in found if used(stored, cutoff)]
    stay = with_parts([*marked(kept, [record for _, record in records], parts), *in_use], parts)
    # a whole goes before its parts: one without them would look damaged
    garbage = sorted(
        (stored for stored in found if name_of(stored.ref) not in stay),
        key=lambda stored: name_of(stored.ref) not in parts,
    )
    sizes = {stored: list(files_of(stored.folder).values()) for stored in found}
    if delete:
        garbage = sweep(root, garbage, cutoff)
    gone = {name_of(stored.ref) for stored in garbage}
    runs_kept = [str(manifest["run_id"]) for manifest in kept]
    runs_removed = sorted({str(manifest["run_id"]) for manifest in manifests} - {*runs_kept})
    outdated = _outdated(store, records, gone)
    remains = left_over(root) | {
        "old logs": older(logs(root), LOG_DAYS),
        "jobs that ended": _ended_jobs(root, cutoff / 1e9),
    }
    aside = quarantined(root)
    if delete:
        remove(root, outdated)
        remove(root, (root / "runs" / f"{run_id}.json" for run_id in runs_removed))
        remove(root, (path for paths in remains.values() for path in paths))
        remove(root, aside if quarantine else ())
        remove_empty(root)
    return Report(
        store=store.location,
        deleted=delete,
        kinds=by_kind(sizes, gone),
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
            raise unreadable(str(path), manifest)
        if manifest is not None:
            yield manifest


def _records(store: ArtifactStore, root: Path) -> Iterator[tuple[Path, KeyRecord]]:
    for path in key_files(root):
        record = record_problem(store, path)
        if isinstance(record, KeyRecord):
            yield path, record


def _outdated(
    store: ArtifactStore, records: list[tuple[Path, KeyRecord]], gone: set[Name]
) -> list[Path]:
    """Old records of artifacts that are not there, but for the newest of each stage."""
    dated = [(written(path), path, record) for path, record in records]
    seen: Counter[str] = Counter()
    outdated = []
    for when, path, record in sorted(dated, key=lambda item: item[0], reverse=True):
        seen[record.stage] += 1
        if record.ref is None or seen[record.stage] <= RECORDS_PER_STAGE:
            continue
        missing = name_of(record.ref) in gone or not store.place(record.ref).exists()
        if missing and when < time.time() - RECORD_DAYS * DAY:
            outdated.append(path)
    return outdated


def _ended_jobs(root: Path, cutoff: float) -> list[Path]:
    jobs = {path.name: written(path) for path in job_files(root)}
    if not jobs:
        return []
    records = {f"{path.parent.name}/{path.name}": written(path) for path in key_files(root)}
    return [root / "jobs" / name for name in ended_jobs(jobs, records, cutoff)]
