"""gc of a store in a bucket, and of this machine's cache of it.

What was used is told by marks in the bucket (`store/shared_use.py`), what is needed by run manifests, what is
there by listings: no artifact costs a question of its own before it goes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from alphaquant.errors import UserError
from alphaquant.progress import track
from alphaquant.store.artifacts import MANIFEST, REFS
from alphaquant.store.inspection import folder_of
from alphaquant.store.parallel import side_by_side
from alphaquant.store.records import KeyRecord
from alphaquant.store.remote import RemoteStore
from alphaquant.store.runs import at_work
from alphaquant.upkeep.bucket_listing import (
    Files,
    artifacts_in,
    jsons_in,
    manifests_in,
    paths_of,
    quarantined_in,
    record_in,
    ref_of,
)
from alphaquant.upkeep.consequences import BLOCK, Name, name_of
from alphaquant.upkeep.gc_cache import trim
from alphaquant.upkeep.gc_report import (
    DAY,
    HOUR,
    RECORD_DAYS,
    RECORDS_PER_STAGE,
    Kind,
    Report,
    unreadable,
)
from alphaquant.upkeep.marking import Keep, kept_runs, marked, parts_of, with_parts
from alphaquant.upkeep.soundness import TORN_MANIFEST, started
from alphaquant.upkeep.sweeping import ended_jobs

LEAST_GRACE_HOURS = 2.0
_SILENT_DAYS = 30.0
"""How long a run that says it is at work is believed without a word of it."""
_BATCH = 256


def gc_bucket(store: RemoteStore, keep: Keep, *, delete: bool, quarantine: bool) -> Report:
    """Find what may go from the bucket and from this machine's cache, and remove it when `delete`.

    Raises UserError when there is no store or the grace is too short, StoreError when the bucket does not
    answer or a run manifest or an artifact is damaged, so that what must stay is not known.
    """
    if keep.grace_hours < LEAST_GRACE_HOURS:
        raise UserError(
            f"a grace of {keep.grace_hours:g} hours is too short for {store.location}: other machines say only "
            f"once an hour what they use. Give --grace {LEAST_GRACE_HOURS:g} or more."
        )
    bucket = store.remote
    found = artifacts_in(store)
    marks = store.use.times()
    now = store.use.now() if delete else time.time()
    cutoff = now - keep.grace_hours * HOUR
    manifests = _manifests(store, now)
    kept = kept_runs(manifests, keep)
    wholes = [ref_of(name) for name, files in found.items() if {REFS, MANIFEST} <= files.keys()]
    parts = parts_of(store, wholes)
    records = jsons_in(store, "keys")
    in_use = [name for name in found if _last_use(name, found[name], marks) >= cutoff]
    stay = with_parts([*marked(kept, _unfinished(store, records, kept), parts), *in_use], parts)
    # a whole goes before its parts, and is put back with them
    garbage = sorted(found.keys() - stay, key=lambda name: (name not in parts, name))
    if delete:
        garbage = _sweep(store, {name: found[name] for name in garbage}, parts, cutoff)
    gone = {*garbage}
    runs_kept = [str(manifest["run_id"]) for manifest in kept]
    runs_removed = sorted({str(manifest["run_id"]) for manifest in manifests} - {*runs_kept})
    outdated = _outdated(store, records, found.keys() - gone, now)
    remains = _remains(store, records, marks, found.keys() - gone, cutoff)
    aside = quarantined_in(store)
    if delete:
        bucket.remove(f"keys/{name}" for name in outdated)
        bucket.remove(f"runs/{run_id}.json" for run_id in runs_removed)
        bucket.remove(name for names in remains.values() for name in names)
        bucket.remove(name for names in aside.values() if quarantine for name in names)
    return Report(
        store=store.location,
        deleted=delete,
        kinds=_by_kind(found, gone),
        runs_kept=runs_kept,
        runs_removed=runs_removed,
        records_removed=len(outdated),
        quarantined=len(aside),
        left_over={what: len(names) for what, names in remains.items() if names},
        cache=trim(store, found, keep, delete=delete),
    )


def _last_use(name: Name, files: Files, marks: Mapping[str, float]) -> float:
    return max(marks.get("/".join(name), 0.0), *(entry.modified for entry in files.values()))


def _manifests(store: RemoteStore, now: float) -> list[dict[str, Any]]:
    """Manifests of all runs; one that was not written for long is not at work."""
    found = []
    for run_id, (manifest, modified) in manifests_in(store).items():
        if manifest is None:
            raise unreadable(f"{store.location}/runs/{run_id}.json", TORN_MANIFEST)
        if modified < now - _SILENT_DAYS * DAY and at_work(manifest):
            manifest["status"] = "silent"
        found.append(manifest)
    return found


def _unfinished(store: RemoteStore, records: Files, kept: list[dict[str, Any]]) -> list[KeyRecord]:
    """Records of blocks that may be needed for resuming a run: those written since it began."""
    since = [started(run).timestamp() for run in kept if run.get("status") != "completed"]
    if not since:
        return []
    # a day for clocks that differ
    names = [
        name
        for name, entry in records.items()
        if name.partition("/")[0].endswith(BLOCK) and entry.modified >= min(since) - DAY
    ]
    return [record for record in side_by_side(lambda n: record_in(store, n), names) if record]


def _sweep(
    store: RemoteStore, garbage: dict[Name, Files], parts: Mapping[Name, list[Name]], cutoff: float
) -> list[Name]:
    """Take away what is still unused, the manifests first; returns that."""
    taken: list[Name] = []
    spared: set[Name] = set()
    names = list(garbage)
    bucket = store.remote
    for start in track(range(0, len(names), _BATCH), "batches", -(-len(names) // _BATCH)):
        batch = [name for name in names[start : start + _BATCH] if name not in spared]
        places = [f"{folder_of(ref_of(name))}/{MANIFEST}" for name in batch]
        with store.use.removing("gc"):
            manifests = dict(zip(places, bucket.read_many(places), strict=True))
            bucket.remove(places)
            marks = store.use.times()
            used_now = [n for n in batch if marks.get("/".join(n), 0.0) >= cutoff]
            spared |= with_parts(used_now, parts)
            for name, place in zip(batch, places, strict=True):
                if name in spared and (content := manifests[place]) is not None:
                    bucket.write(place, content)
            going = [name for name in batch if name not in spared]
            # the manifests are gone, and may be there again once nothing else of the artifact is
            bucket.remove(
                path for name in going for path in paths_of(name, garbage[name].keys() - {MANIFEST})
            )
            taken += going
    return taken


def _outdated(store: RemoteStore, records: Files, there: set[Name], now: float) -> list[str]:
    """Old records of artifacts that are not there, but for the newest of each stage."""
    stages: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, entry in records.items():
        stages[name.partition("/")[0]].append((entry.modified, name))
    old = [
        name
        for dated in stages.values()
        for when, name in sorted(dated, reverse=True)[RECORDS_PER_STAGE:]
        if when < now - RECORD_DAYS * DAY
    ]
    read = side_by_side(lambda name: record_in(store, name), old)
    return [
        name
        for name, record in zip(old, read, strict=True)
        if record and record.ref and name_of(record.ref) not in there
    ]


def _remains(
    store: RemoteStore, records: Files, marks: Mapping[str, float], there: set[Name], cutoff: float
) -> dict[str, list[str]]:
    """Harmless remains of killed processes and removed artifacts."""
    leases = store.remote.files("leases")
    jobs = {name: entry.modified for name, entry in jsons_in(store, "jobs").items()}
    recorded = {name: entry.modified for name, entry in records.items()}
    stay = {"/".join(name) for name in there}
    return {
        "leases of killed processes": [
            f"leases/{name}" for name, entry in leases.items() if entry.modified < cutoff
        ],
        "jobs that ended": [f"jobs/{name}" for name in ended_jobs(jobs, recorded, cutoff)],
        "marks of artifacts that are gone": [
            f"used/{name}" for name, when in marks.items() if name not in stay and when < cutoff
        ],
    }


def _by_kind(found: Mapping[Name, Files], gone: set[Name]) -> list[Kind]:
    numbers: Counter[tuple[str, bool]] = Counter()
    sizes: Counter[tuple[str, bool]] = Counter()
    for name, files in found.items():
        numbers[name[0], name in gone] += 1
        sizes[name[0], name in gone] += sum(entry.size for entry in files.values())
    return [
        Kind(kind, numbers[kind, True], sizes[kind, True], numbers[kind, False], sizes[kind, False])
        for kind in sorted({kind for kind, _ in found})
    ]
