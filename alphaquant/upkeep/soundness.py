"""Whether single parts of a store are what they should be: every file of an artifact, a record, a manifest.

A run asks the store only for the first problem of what it needs; here everything is looked at and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alphaquant.progress import track
from alphaquant.store.artifacts import MANIFEST, ArtifactRef, ArtifactStore
from alphaquant.store.files import read_json, sha256_of, stat_mark
from alphaquant.store.records import KeyRecord, load_record
from alphaquant.upkeep.inventory import Stored, files_of

TORN_RECORD = "torn, or not what was written for this key"
TORN_MANIFEST = "torn, or not what was written for this run"


@dataclass
class Check:
    """One artifact, and what is wrong with it."""

    stored: Stored
    inode: int | None
    """Of the folder that was looked at; None when it vanished before."""
    problems: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    """Files that the manifest does not list."""
    marks: dict[str, list[int]] = field(default_factory=dict)
    children: dict[str, ArtifactRef] = field(default_factory=dict)

    def still_there(self) -> bool:
        """Whether the folder is the one that was looked at: a run may have replaced it."""
        return self.inode is not None and _inode(self.stored.folder) == self.inode


def check_artifacts(store: ArtifactStore, found: list[Stored], *, fast: bool) -> list[Check]:
    """Look at every file of these artifacts; contents are hashed by several threads.

    `fast` takes the content of a file to be as it was when its size, mtime and inode are.
    """
    checks = [Check(stored, _inode(stored.folder)) for stored in found]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        jobs: dict[Future[str | None], Check] = {}
        for check in checks:
            known = _remembered(store, check.stored) if fast else {}
            for entry in _listed(check):
                job = pool.submit(_file_problem, check, entry, known.get(entry["path"]))
                jobs[job] = check
        for job in track(as_completed(jobs), "files", len(jobs)):
            if problem := job.result():
                jobs[job].problems.append(problem)
    finally:
        pool.shutdown(cancel_futures=True)
    for check in checks:
        check.problems.sort()
        if not check.problems:
            check.children = store.children(check.stored.ref)
    return [check for check in checks if check.still_there()]


def record_problem(store: ArtifactStore, path: Path) -> KeyRecord | str | None:
    """The record in a file, what is wrong with it, or None when the file is gone."""
    if problem := _no_plain_file(path):
        return problem
    if record := load_record(store, path.parent.name, path.stem):
        return record
    return TORN_RECORD if path.exists() else None


def manifest_problem(path: Path) -> dict[str, Any] | str | None:
    """The run manifest in a file, what is wrong with it, or None when the file is gone."""
    if problem := _no_plain_file(path):
        return problem
    manifest = told_by(read_json(path), path.stem)
    if manifest is None and path.exists():
        return TORN_MANIFEST
    return manifest


def told_by(manifest: Any, run_id: str) -> dict[str, Any] | None:
    """A run's manifest, or None when it is not what was written for this run."""
    try:
        if manifest["run_id"] == run_id:
            refs_of(manifest)
            started(manifest)
            return dict(manifest)
    except (TypeError, KeyError, AttributeError, ValueError):
        pass
    return None


def refs_of(manifest: dict[str, Any]) -> dict[str, ArtifactRef]:
    """Artifacts that a run made or found, by stage."""
    return {name: ArtifactRef.model_validate(ref) for name, ref in manifest["refs"].items()}


def started(manifest: dict[str, Any]) -> datetime:
    """When a run began."""
    return datetime.fromisoformat(manifest["started"]).astimezone(UTC)


def _listed(check: Check) -> Iterator[dict[str, Any]]:
    """What the manifest lists; notes what is wrong with the manifest, and files beside it."""
    folder = check.stored.folder
    if check.inode is None:
        return
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except OSError as error:
        check.problems.append(f"{MANIFEST} cannot be read ({error.strerror})")
        return
    if hashlib.sha256(manifest).hexdigest() != check.stored.digest:
        check.problems.append(f"{MANIFEST} was changed")
        return
    entries = json.loads(manifest)
    check.extra = sorted({*files_of(folder)} - {MANIFEST, *(entry["path"] for entry in entries)})
    yield from entries


def _file_problem(check: Check, entry: dict[str, Any], known: list[int] | None) -> str | None:
    name, path = entry["path"], check.stored.folder / entry["path"]
    try:
        mark = check.marks[name] = stat_mark(path)
        if mark[0] != entry["size"]:
            return f"{name} has {mark[0]} bytes instead of {entry['size']}"
        if mark != known and sha256_of(path) != entry["sha256"]:
            return f"the content of {name} was changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _remembered(store: ArtifactStore, stored: Stored) -> dict[str, list[int]]:
    known = store.read_json(f"stat/{stored.kind}/{stored.digest}.json")
    return known if isinstance(known, dict) else {}


def _no_plain_file(path: Path) -> str | None:
    try:
        return None if stat.S_ISREG(path.lstat().st_mode) else "no plain file"
    except OSError:
        return None


def _inode(folder: Path) -> int | None:
    try:
        return folder.lstat().st_ino
    except OSError:
        return None
