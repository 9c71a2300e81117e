"""A process that must not outlive us: its own session, its own log, ended by the kernel if we are killed.

A session of its own keeps Ctrl-C in the terminal from reaching it before we have decided what to do. What
needs Linux (the kernel's help, looking at a process's children) is left out elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LINUX = sys.platform == "linux"
_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_MOST_LOG_BYTES = 10_000_000
_TAIL_LINES = 15


@dataclass
class Child:
    """A command that is kept running, or that is run once."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    """When it was started last, by `time.monotonic`."""

    def start(self) -> None:
        """Start the command; what it prints is added to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MOST_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_ends_with_parent(os.getpid()) if _LINUX else None,
            )
        self.started = time.monotonic()

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self.process.poll() if self.process else 0

    @property
    def children(self) -> list[int]:
        """Processes that it started itself."""
        return children_of(self.process.pid) if self.process else []

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is there."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def adopt_orphans() -> None:
    """Become the parent of our children's children when these lose theirs, so that none gets away."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(process: int) -> list[int]:
    """Processes whose parent is `process`, ended ones that nobody has waited for included."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(name) for name in path.read_text().split()]
    return found


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def end(process: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def kill_group(process: int) -> None:
    """Kill a process, and the group that it leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process) == process:
            os.killpg(process, signal.SIGKILL)
        else:
            os.kill(process, signal.SIGKILL)


def _ends_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_the_kernel
