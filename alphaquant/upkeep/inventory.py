"""What lies in a store on this machine, file by file: the one place that walks its folders.

Runs may be at work meanwhile: what vanishes during the walk is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.files import try_lock

QUARANTINE = "quarantine"
_PARTS = ("keys", "runs", "jobs", "stat", "cache")
_DRAFT_SECONDS = 10.0
"""A younger draft may not be locked yet."""
_HALF_WRITTEN_SECONDS = 3600.0
_HALF_WRITTEN = re.compile(r"\..+\.json\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Stored:
    """A folder that stands for an artifact."""

    kind: str
    digest: str
    folder: Path

    @property
    def ref(self) -> ArtifactRef:
        """Its reference; the size is not known before its manifest is read."""
        return ArtifactRef(kind=self.kind, digest=self.digest, size=0)

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest[:12]}"


def root_of(store: ArtifactStore) -> Path:
    """Root of a store in a folder. Raises UserError when it is not there."""
    if not store.root.is_dir():
        raise UserError(
            f"there is no artifact store at {store.root}. Name one with --store DIR or ALPHAQUANT_STORE."
        )
    return store.root


def artifacts(root: Path) -> list[Stored]:
    """Every artifact, sound or not."""
    return [
        Stored(kind.name, folder.name, folder)
        for kind in _below(root / "objects")
        for half in _below(kind)
        for folder in _below(half)
    ]


def files_of(folder: Path) -> dict[str, os.stat_result]:
    """Every file below a folder, by its path in it."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def key_files(root: Path) -> list[Path]:
    """Files of key records, `keys/<stage>/<key>.json`."""
    return [path for stage in _below(root / "keys") for path in _jsons(stage)]


def run_files(root: Path) -> list[Path]:
    """Files of run manifests."""
    return _jsons(root / "runs")


def job_files(root: Path) -> list[Path]:
    """Jobs for workers, and what those said of failures."""
    return _jsons(root / "jobs")


def in_the_way(root: Path) -> list[Path]:
    """Folders and links where runs write files: locks and remembered checks."""
    places = [path for kind in _below(root / "stat") for path in _below(kind)]
    places += [path for path in _below(root / "locks") if path.suffix == ".lock"]
    return [path for path in places if path.is_symlink() or path.is_dir()]


def logs(root: Path) -> list[Path]:
    """Kept tracebacks."""
    return _below(root / "logs")


def quarantined(root: Path) -> list[Path]:
    """What fsck has put aside."""
    return [path for kind in _below(root / QUARANTINE) for path in _below(kind)]


def empty_folders(root: Path) -> list[Path]:
    """Folders that artifacts were in."""
    kinds = _below(root / "objects")
    halves = [half for kind in kinds for half in _below(kind)]
    return [folder for folder in (*halves, *kinds) if folder.is_dir()]


def left_over(root: Path) -> dict[str, list[Path]]:
    """Harmless remains of killed processes and removed artifacts, by what they are."""
    now = time.time()
    return {
        "abandoned drafts": _abandoned_drafts(root, now - _DRAFT_SECONDS),
        "half-written files": _half_written(root, now - _HALF_WRITTEN_SECONDS),
        "checks of artifacts that are gone": _orphan_checks(root),
    }


def _abandoned_drafts(root: Path, before: float) -> list[Path]:
    """Drafts that no living process holds."""
    return [
        path for path in _below(root / "tmp") if _untouched_since(path, before) and not _held(path)
    ]


def _half_written(root: Path, before: float) -> list[Path]:
    """JSON files whose writer was killed."""
    return [
        path
        for part in _PARTS
        for where, _, names in os.walk(root / part)
        for path in (Path(where, name) for name in names if _HALF_WRITTEN.fullmatch(name))
        if _untouched_since(path, before)
    ]


def _orphan_checks(root: Path) -> list[Path]:
    return [
        path
        for kind in _below(root / "stat")
        for path in _jsons(kind)
        if not (root / "objects" / kind.name / path.stem[:2] / path.stem).exists()
    ]


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _jsons(folder: Path) -> list[Path]:
    return [path for path in _below(folder) if path.suffix == ".json" and path.name[0] != "."]


def _untouched_since(path: Path, moment: float) -> bool:
    try:
        return path.lstat().st_mtime < moment
    except OSError:
        return False


def _held(draft: Path) -> bool:
    try:
        claim = os.open(draft, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not try_lock(claim)
    finally:
        os.close(claim)
