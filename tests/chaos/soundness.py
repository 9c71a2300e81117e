"""What a store must be like after any number of kills."""

from __future__ import annotations

import os
from pathlib import Path

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.files import try_lock
from alphaquant.upkeep.fsck import fsck


def objects_of(store: ArtifactStore) -> list[ArtifactRef]:
    """Every artifact that lies in the store, wanted or not."""
    folders = (store.root / "objects").glob("*/??/*")
    return [
        ArtifactRef(kind=folder.parts[-3], digest=folder.name, size=0) for folder in sorted(folders)
    ]


def assert_sound(root: Path) -> None:
    """Artifacts are whole, no lock is held, and what was being written is gone with the next draft."""
    store = ArtifactStore(root)
    refs = objects_of(store)
    assert refs
    problems = {str(ref): store.problem(ref, full=True) for ref in refs}
    assert {name: problem for name, problem in problems.items() if problem} == {}
    assert fsck(store, repair=False).findings == []
    for lock in (root / "locks").rglob("*"):
        if lock.is_file():
            handle = os.open(lock, os.O_RDWR)
            try:
                assert try_lock(handle), f"{lock} is held"
            finally:
                os.close(handle)
    for draft in (root / "tmp").iterdir():
        os.utime(draft, (0, 0))  # those of the last seconds are left to the next run but one
    with ArtifactStore(root).draft("probe") as draft:
        draft.discard()
    assert list((root / "tmp").iterdir()) == []


def different_files(one: Path, other: Path) -> set[str]:
    """Files of two folders whose bytes differ, or which only one of them holds."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (one, other)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name for name in names if _bytes(one / name) != _bytes(other / name)}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
