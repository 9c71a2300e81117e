"""How much memory a command and its children hold at most, seen from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY = 0.05  # seconds between looks
_FIRST = 0.001  # the same at first, doubled with every look: a process may be over soon


class MemoryWatch:
    """Looks at a process and its descendants until the context is left.

    `getrusage` would begin with the size of the program that started the process, and would know the largest of
    several processes only.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        """The most that it had resident at one moment, mapped files included, and its descendants for themselves."""
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        over, pause = False, _FIRST
        while not over:
            now, most = _sizes(self._pid)
            resident = now + sum(_private(pid) for pid in _family(self._pid) if pid != self._pid)
            # `most` catches what came and went between looks
            self.peak_bytes = max(self.peak_bytes, resident, most)
            over = self._done.wait(pause)
            pause = min(2 * pause, _EVERY)


def _family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text(encoding="ascii").split()
        except OSError:  # it ended meanwhile
            continue
        for child in children:
            yield from _family(int(child))


def _sizes(pid: int) -> tuple[int, int]:
    """Bytes resident now, and at most so far; zeros for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0, 0
    found = dict(line.partition(":")[::2] for line in text.splitlines())
    now, most = (found.get(key, "0 kB").split()[0] for key in ("VmRSS", "VmHWM"))
    return 1024 * int(now), 1024 * int(most)


def _private(pid: int) -> int:
    """Bytes that are this process's alone: pages that a fork shares are counted where they come from."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line[:8] == "Private_")
