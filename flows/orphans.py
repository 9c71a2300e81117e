"""Embedded servers that outlive a killed run: noted when they start, ended by the next run.

Needs `/proc`; elsewhere nothing is noted and nothing is ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.files import read_json

SERVER = "prefect.server.api.server:create_app"
_FOLDER = "cache/servers"
_PROC = Path("/proc")


def note_own_server(store: ArtifactStore) -> None:
    """Write down the server that this process has started, if it has."""
    for process in _processes():
        if _parent(process) == os.getpid() and SERVER in _command(process):
            note = {
                "boot": _boot(),
                "server": [process, _started(process)],
                "owner": [os.getpid(), _started(os.getpid())],
            }
            store.write_json(f"{_FOLDER}/{process}.json", note)


def end_orphans(store: ArtifactStore) -> list[int]:
    """Stop noted servers whose owner is gone; returns their process ids."""
    folder = store.root / _FOLDER
    ended = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        note = read_json(path)
        if not isinstance(note, dict) or note.get("boot") != _boot():
            continue
        server, owner = note["server"], note["owner"]
        if _started(owner[0]) == owner[1]:
            continue
        # a process id is used again; its start time and command tell whether it is still the server
        if _started(server[0]) == server[1] and SERVER in _command(server[0]):
            os.kill(server[0], signal.SIGTERM)
            ended.append(int(server[0]))
        path.unlink(missing_ok=True)
    return ended


def _processes() -> Iterator[int]:
    if _PROC.is_dir():
        yield from (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _parent(process: int) -> int | None:
    fields = _stat(process)
    return int(fields[1]) if fields else None


def _started(process: int) -> int | None:
    """Clock ticks from boot to the process's start; None when there is no such process."""
    fields = _stat(process)
    return int(fields[19]) if fields else None


def _stat(process: int) -> list[str]:
    """Fields of /proc/N/stat behind the command's name."""
    text = _read(_PROC / str(process) / "stat")
    return text.rpartition(")")[2].split()


def _command(process: int) -> list[str]:
    return _read(_PROC / str(process) / "cmdline").split("\0")


def _boot() -> str:
    return _read(_PROC / "sys" / "kernel" / "random" / "boot_id").strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
