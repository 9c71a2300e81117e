"""What a command took, children included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.rivals.process import measured

_MIB = 2**20
_HOLD = "import time; held = b'x' * ({mib} * 2**20); time.sleep(1)"
_TWO = (
    "import subprocess, sys\n"
    f"children = [subprocess.Popen([sys.executable, '-c', {_HOLD.format(mib=60)!r}]) for _ in range(2)]\n"
    "[child.wait() for child in children]"
)

_FORK = (
    "import os, time\n"
    "held = b'x' * (100 * 2**20)\n"
    "child = os.fork()\n"
    "time.sleep(1)\n"
    "child and os.waitpid(child, 0)"
)


@pytest.mark.parametrize(
    ("code", "least", "most"), [("pass", 1, 40), (_TWO, 120, 240), (_FORK, 100, 150)]
)
def test_memory_is_that_of_all_children_and_not_of_who_started_them(
    code: str, least: int, most: int, tmp_path: Path
) -> None:
    here = bytearray(os.urandom(_MIB) * 300)  # what getrusage would hand down
    used = measured(
        [sys.executable, "-c", f"import time; time.sleep(.3)\n{code}"],
        tmp_path / "log.txt",
        environment=dict(os.environ),
        limit=60,
    )
    del here
    assert used.code == 0
    assert least * _MIB < used.peak_bytes < most * _MIB
