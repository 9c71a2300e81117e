"""Run a command and tell what it took: wall and CPU seconds, peak memory, its children included."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rivals.memory import MemoryWatch

_LAST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished command took."""

    code: int
    """Exit status; negative for a signal."""
    wall: float
    cpu: float
    """Seconds of user and system time, waited-for children included."""
    peak_bytes: int
    """Largest resident size of the command and its children together."""


def measured(
    command: Sequence[str], log: Path, *, environment: dict[str, str], limit: float
) -> Usage:
    """Run `command` for at most `limit` seconds, its output to `log`; later ones are ended."""
    started = time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,  # some leave logs where they are started
            start_new_session=True,
        )
        timer = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))
        timer.start()
        try:
            with MemoryWatch(child.pid) as memory:
                _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
        finally:
            timer.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)  # wait4 took what Popen would wait for
    wall = time.perf_counter() - started
    return Usage(child.returncode, wall, used.ru_utime + used.ru_stime, memory.peak_bytes)


def last_words(log: Path) -> str:
    """The last line of a log that says something, shortened, for a table."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "Error" in line.partition(":")[0]]
    return ((errors or said or ["it said nothing"])[-1])[:_LAST_WORDS]


def environment(threads: int, **more: str) -> dict[str, str]:
    """Our environment, offline, with `threads` threads, and without our PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **more,
    }
