"""Embedded servers that outlive a killed run: marked through their environment, ended by the next run.

Needs `/proc`; elsewhere nothing is marked and nothing is ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from flows.server.child import children_of, end

SERVER = "prefect.server.api.server:create_app"
MARK = "ALPHAQUANT_SERVER_OF"
_PROC = Path("/proc")


def mark_servers() -> None:
    """Let every server that this process starts from now on say whose it is."""
    if mark := _identity(os.getpid()):
        os.environ[MARK] = mark


def own_servers() -> list[int]:
    """Servers that this process has started."""
    return [child for child in children_of(os.getpid()) if SERVER in _fields(child, "cmdline")]


def end_orphans() -> list[int]:
    """Stop marked servers of this user whose owner is gone; returns their process ids."""
    ended = []
    for process in _processes():
        if SERVER not in _fields(process, "cmdline"):
            continue
        owner = dict(field.partition("=")[::2] for field in _fields(process, "environ")).get(MARK)
        # a process id is used again, and means another process in a container: the whole mark must be as it was
        if owner and _namespace(process) == owner.split()[2] and not _lives(owner):
            end(process, signal.SIGTERM)
            ended.append(process)
    return ended


def _lives(owner: str) -> bool:
    return _identity(int(owner.split()[0])) == owner


def _identity(process: int) -> str | None:
    """Process id, start in clock ticks since boot, and what the id counts in; None when it is gone."""
    fields = _read(_PROC / str(process) / "stat").rpartition(")")[2].split()
    # Z: it ended, and its parent has not asked yet
    return f"{process} {fields[19]} {_namespace(process)}" if fields and fields[0] != "Z" else None


def _namespace(process: int) -> str:
    try:
        return str((_PROC / str(process) / "ns" / "pid").readlink())
    except OSError:
        return ""


def _processes() -> Iterator[int]:
    if _PROC.is_dir():
        yield from (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _fields(process: int, name: str) -> list[str]:
    return _read(_PROC / str(process) / name).split("\0")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
