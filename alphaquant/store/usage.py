"""Use of artifacts, noted so that gc takes nothing away from a run that has just found or made it.

A use sets the time of the artifact's folder (no check looks at it). Whoever opens a store and uses it holds
a lock on a file of its own until it ends, however it ends; gc keeps everything used since the oldest such
file was made. Noting and removing exclude each other through one lock, `locks/gc.lock`: a use comes before
the removal is decided, or finds the artifact gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.errors import StoreError
from alphaquant.store.files import try_lock, writing_to

if TYPE_CHECKING:
    from alphaquant.store.artifacts import ArtifactRef, ArtifactStore

_GATE = "locks/gc.lock"
_USERS = "locks/users"


class _User:
    """The locked file that says that an open store is in use."""

    def __init__(self, root: Path) -> None:
        self.path = root / _USERS / uuid.uuid4().hex
        while True:
            self.handle = _open(self.path)
            if self.handle is None:
                return  # a store that may only be read
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            if self.holds():
                return
            os.close(self.handle)  # gc took the file for a dead one before it was locked

    def holds(self) -> bool:
        """Whether the file is still where gc looks: a store may have been moved or removed."""
        try:
            return self.handle is None or os.path.samestat(os.fstat(self.handle), self.path.stat())
        except OSError:
            return False

    def end(self, process: int) -> None:
        """Let go; a forked child leaves the file to its parent."""
        if self.handle is None:
            return
        if os.getpid() == process and self.holds():
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


_users: weakref.WeakKeyDictionary[ArtifactStore, _User] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def noting_use(store: ArtifactStore) -> Iterator[None]:
    """Keep gc from removing anything while the context is open; for moments, not for work."""
    with _gate(store.root, fcntl.LOCK_SH):
        _announce(store)
        yield


def note_use(store: ArtifactStore, ref: ArtifactRef) -> None:
    """Say that an artifact and everything it is made of are about to be used.

    Check that it is there afterwards, not before. Does nothing in a store that may only be read.
    """
    if not store.heals:
        return  # only asked, not used
    store.mark_used(ref)
    with noting_use(store):
        todo = [ref]
        while todo:
            found = todo.pop()
            # what is missing or damaged is not used: the check that follows will say so
            with contextlib.suppress(OSError, ValueError, AttributeError, StoreError):
                os.utime(store.place(found))
                todo += store.children(found).values()


@contextlib.contextmanager
def removing(root: Path) -> Iterator[None]:
    """Keep everybody from noting a use while the context is open."""
    with _gate(root, fcntl.LOCK_EX):
        yield


def used_since(folder: Path, moment: int) -> bool:
    """Whether an artifact was used or made at `moment` (ns) or later. Raises OSError when it is gone."""
    handle = os.open(folder, os.O_RDONLY)  # opening asks a network file system for the time of now
    try:
        return os.fstat(handle).st_mtime_ns >= moment
    finally:
        os.close(handle)


def clock(root: Path) -> int:
    """The time (ns) of the file system itself, which another machine may keep.

    Raises UserError when the store may not be written.
    """
    with writing_to(root), _gate(root, fcntl.LOCK_SH) as gate:
        if gate is None:
            return time.time_ns()
        os.utime(gate)
        return os.fstat(gate).st_mtime_ns


def oldest_user(root: Path, *, tidy: bool = False) -> int | None:
    """Since when (ns) somebody who still uses the store has done so; `tidy` removes files of the dead."""
    since: list[int] = []
    users = root / _USERS
    for path in users.iterdir() if users.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            try:
                handle = os.open(path, os.O_RDWR)
            except OSError:  # somebody else's, or on a disk that may only be read: taken to live
                since.append(path.stat().st_mtime_ns)
                continue
            try:
                if not try_lock(handle):
                    since.append(os.fstat(handle).st_mtime_ns)
                elif tidy:
                    path.unlink()
            finally:
                os.close(handle)
    return min(since, default=None)


@contextlib.contextmanager
def _gate(root: Path, mode: int) -> Iterator[int | None]:
    handle = _open(root / _GATE)
    try:
        if handle is not None:
            fcntl.flock(handle, mode)
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _announce(store: ArtifactStore) -> None:
    user = _users.get(store)
    if user is None or not user.holds():
        user = _users[store] = _User(store.root)
        weakref.finalize(store, user.end, os.getpid())


def _open(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        pass
    try:
        return os.open(path, os.O_RDONLY)  # enough for taking part in a lock of somebody else's
    except OSError:
        return None
