"""A command in a process of its own, followed by what it says and killed at chosen moments."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_LOOK = 0.005
_END = re.compile(r"^(?:\S+ )?(\w+) +(ran|cached|skipped)\b", re.MULTILINE)
_BEGIN = re.compile(r"^(?:\S+ )?(\w+) \.\.\.$", re.MULTILINE)
_BLOCKS = re.compile(r"blocks: (\d+) ran, (\d+) cached")


class Command:
    """A process group with its standard error in a file, so that nobody has to read a pipe."""

    def __init__(
        self, arguments: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.log = log
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> dict[str, str]:
        """State by stage, of the stages it reported the end of."""
        return {str(stage): str(state) for stage, state in _END.findall(self.said)}

    @property
    def begun(self) -> list[str]:
        """Stages it reported the beginning of."""
        return _BEGIN.findall(self.said)

    @property
    def blocks(self) -> tuple[int, int] | None:
        """Decoder blocks it reported as computed and as found; None when it computed no stage of blocks."""
        found = _BLOCKS.search(self.said)
        return (int(found[1]), int(found[2])) if found else None

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> bool:
        """Look again and again; False when the process ended first."""
        limit = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > limit:
                raise TimeoutError(f"waited {seconds:.0f} s in vain: {self.said}")
            time.sleep(_LOOK)
        return True

    def wait(self, seconds: float = 600) -> int:
        """The exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"did not end in {seconds:.0f} s: {self.said}") from None

    def kill(self, *, whole: bool = True) -> None:
        """SIGKILL to the whole group, or to the process alone: what it started lives on as an orphan."""
        if whole:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()


def processes_with(name: str, value: str) -> Iterator[int]:
    """Living processes whose environment was given `name=value`."""
    wanted = f"{name}={value}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
