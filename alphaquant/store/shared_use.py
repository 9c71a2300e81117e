"""Use of artifacts of a bucket, said where machines that share no disk see it; `usage.py` is for one disk.

No lock spans machines that may vanish, so use is told by the server's times. Whoever finds an artifact first
renews `used/<kind>/<digest>`, then looks for its manifest; gc takes the manifest away, then looks at the marks
once more, and puts back what was marked. One of the two sees the other: the artifact stays, or is missed and made
again. Files go last, under a lease; whoever completes an artifact that has files already marks it and waits
while somebody holds that lease.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.bucket import Bucket
from alphaquant.store.lease import leased
from alphaquant.store.lock import locked, place_of

MARK_SECONDS = 3600.0
"""How long a machine that has said that it uses an artifact does not say so again."""
_FOLDER = "used"
_CLOCK = "clock"
_GATE = "gc"
_LOCAL_GATE = "gc-bucket"
"""Not "gc": that is the lock by which `usage.py` keeps everybody on this machine from noting a use."""
_DOING = "removing artifacts"


class SharedUse:
    """The marks of one bucket; `root` is this machine's folder for it."""

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self._bucket = bucket
        self._root = root
        self._marked: dict[str, float] = {}

    def mark(self, ref: ArtifactRef) -> None:
        """Say that an artifact is about to be used, at most hourly. Raises StoreError."""
        if time.monotonic() > self._marked.get(ref.digest, 0.0):
            self._bucket.write(path_of(ref), socket.gethostname().encode())
            self._marked[ref.digest] = time.monotonic() + MARK_SECONDS

    def pass_gate(self, ref: ArtifactRef) -> None:
        """Mark an artifact that is about to be completed, and wait for who may be removing files of it."""
        self.mark(ref)
        if self._bucket.files(f"leases/{_GATE}"):
            with self.removing(f"uploading {ref}"):
                pass  # whoever removes from now on sees the mark

    @contextlib.contextmanager
    def removing(self, what: str) -> Iterator[None]:
        """Keep every machine from completing artifacts while the context is open."""
        with (
            locked(self._root, _LOCAL_GATE, what, _DOING),
            leased(self._bucket, _GATE, what, place_of(self._root), _DOING),
        ):
            yield

    def times(self) -> dict[str, float]:
        """When each artifact was last said to be used, by `<kind>/<digest>`."""
        found = self._bucket.files(_FOLDER)
        return {name: entry.modified for name, entry in found.items() if name != _CLOCK}

    def now(self) -> float:
        """The time of the server, by which it dates files."""
        self._bucket.write(f"{_FOLDER}/{_CLOCK}", b"")
        return self._bucket.files(_FOLDER)[_CLOCK].modified


def path_of(ref: ArtifactRef) -> str:
    """Name of the file that says when an artifact was used."""
    return f"{_FOLDER}/{ref.kind}/{ref.digest}"
