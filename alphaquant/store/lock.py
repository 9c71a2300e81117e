"""One computation for everybody who wants the same thing at the same time.

`flock` belongs to the process: the kernel frees it even after kill -9, so a lock is never stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from alphaquant.progress import reporter
from alphaquant.store.files import read_json, try_lock, writing_to


@contextlib.contextmanager
def locked(root: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lock `name` of the store at `root`.

    A waiter reports what it waits for. Works between threads, processes and, on a file system that
    supports flock, between machines.
    """
    path = root / "locks" / f"{name}.lock"
    waited = False
    while True:
        with writing_to(root):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(handle):
                if not waited:
                    reporter().note(
                        f"{what}: waiting for {_holder(path)}, which is computing the same"
                    )
                waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_current(handle, path):
                continue  # the holder removed the file when it was done: lock the new one
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(_who_am_i()).encode(), 0)
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _who_am_i() -> dict[str, str]:
    since = datetime.now().astimezone().strftime("%H:%M:%S")
    return {"process": str(os.getpid()), "host": socket.gethostname(), "since": since}


def _holder(path: Path) -> str:
    holder = read_json(path)
    if not isinstance(holder, dict):
        return "another process"
    return f"process {holder['process']} on {holder['host']} (since {holder['since']})"
