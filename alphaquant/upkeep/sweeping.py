"""Taking things out of a folder on this machine, where runs may be at work."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from alphaquant.progress import track
from alphaquant.store.files import writing_to
from alphaquant.store.usage import clock, oldest_user, removing, used_since
from alphaquant.upkeep.consequences import Name, name_of
from alphaquant.upkeep.gc_report import DAY, HOUR, Kind
from alphaquant.upkeep.inventory import Stored, empty_folders

_BATCH = 64
_JOB_DAYS = 30.0


def moments(root: Path, grace_hours: float, *, delete: bool) -> tuple[int, int]:
    """The time of now, and since when what was used stays (ns): for the grace, and for whoever still lives.

    The clock is the file system's when something is to be removed. Raises UserError when it may not be written.
    """
    now = clock(root) if delete else time.time_ns()
    return now, min(now - int(grace_hours * HOUR * 1e9), oldest_user(root, tidy=delete) or now)


def used(stored: Stored, cutoff: int) -> bool:
    """Whether an artifact was used at `cutoff` (ns) or later; not when it is gone."""
    try:
        return used_since(stored.folder, cutoff)
    except OSError:
        return False


def sweep(root: Path, garbage: list[Stored], cutoff: int) -> list[Stored]:
    """Take away what is still unused; returns that. Raises UserError when it may not be written."""
    taken: list[Stored] = []
    with writing_to(root):
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
        remove(root, graves)
    return taken


def remove(root: Path, paths: Iterable[Path]) -> None:
    """Remove files and folders; what is gone is fine."""
    with writing_to(root):
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_empty(root: Path) -> None:
    """Remove folders that nothing is in; a run that is about to put something there is kept waiting."""
    with removing(root):
        for folder in empty_folders(root):
            with contextlib.suppress(OSError):
                folder.rmdir()


def older(paths: Iterable[Path], days: float) -> list[Path]:
    """Those that were not written in the last `days`."""
    return [path for path in paths if written(path) < time.time() - days * DAY]


def written(path: Path) -> float:
    """When a file was written, in seconds; this moment when it is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()


def ended_jobs(jobs: Mapping[str, float], records: Mapping[str, float], cutoff: float) -> list[str]:
    """Jobs of before `cutoff` that no worker will ask for any more, by file name.

    Both arguments say when files were written: those of `jobs/`, and `<stage>/<key>.json` of `keys/`. A queue may
    be longer than any grace, so a job stays until its result was recorded behind it, or for a month.
    """
    ended = []
    for name, when in jobs.items():
        stage, _, key = name.removesuffix(".json").rpartition("-")
        over = key.endswith(".failed") or records.get(f"{stage}/{key}.json", -1.0) >= when
        if when < cutoff and (over or when < cutoff - _JOB_DAYS * DAY):
            ended.append(name)
    return ended


def by_kind(sizes: Mapping[Stored, list[os.stat_result]], gone: set[Name]) -> list[Kind]:
    """Numbers and bytes by kind; a file that has a hard link elsewhere frees nothing."""
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
