"""One computation for everybody who wants the same thing at the same time.

`flock` belongs to the process: the kernel frees it even after kill -9, so a lock is never stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from alphaquant.progress import reporter
from alphaquant.store.files import read_json, try_lock, writing_to

given_up = threading.Event()
"""Set when the main thread was interrupted: what waits in other threads then ends."""
_PAUSE = 0.2


@contextlib.contextmanager
def locked(root: Path, name: str, what: str, doing: str = "computing the same") -> Iterator[None]:
    """Hold the lock `name` of the store at `root`.

    A waiter reports what it waits for: `what`, and what the holder is `doing`. Works between threads,
    processes and, on a file system that supports flock, between machines.
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
                    holder = describe(read_json(path))
                    reporter().note(f"{what}: waiting for {holder}, which is {doing}")
                waited = True
                _wait(handle)
            if not _is_current(handle, path):
                continue  # the holder removed the file when it was done: lock the new one
            with writing_to(root):
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(who_am_i()).encode(), 0)
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _wait(handle: int) -> None:
    """Wait for a lock; in a thread, which no signal reaches, until the main thread has given up."""
    if threading.current_thread() is threading.main_thread():
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while not try_lock(handle):
        if given_up.wait(_PAUSE):
            raise KeyboardInterrupt


def who_am_i() -> dict[str, str]:
    """What a lock says about its holder."""
    since = datetime.now().astimezone().strftime("%H:%M:%S")
    return {"process": str(os.getpid()), "host": socket.gethostname(), "since": since}


def describe(holder: Any) -> str:
    """The holder of a lock in words, from what the lock says."""
    if not isinstance(holder, dict):
        return "another process"
    process, host, since = (holder.get(key, "?") for key in ("process", "host", "since"))
    return f"process {process} on {host} (since {since})"


def place_of(root: Path) -> str:
    """A name for a folder that no other machine gives to a folder of its own."""
    stat = root.stat()
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return f"{machine}:{stat.st_dev}:{stat.st_ino}"


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
