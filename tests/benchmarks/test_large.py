"""What the benchmark of a large checkpoint sees of a process, and that it leaves nothing running."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from benchmarks.large import watched

_PARENT = """
import json, subprocess, sys, time
held = b"x" * (64 << 20)
child = subprocess.Popen([sys.executable, "-c", "import time; held = b'x' * (64 << 20); time.sleep(60)"])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
time.sleep(float(sys.argv[2]))
child.kill()
child.wait()
print(json.dumps({"done": True}))
"""


def test_a_process_is_seen_with_its_children_and_killed_with_them(tmp_path: Path) -> None:
    said = tmp_path / "child"
    seen: list[float] = []

    def now() -> bool:
        if said.is_file() and said.read_text():
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > 1

    found = watched(["-c", _PARENT, str(said), "60"], 1, kill_when=now)
    assert found.answer is None
    assert found.own > 64 << 20
    assert found.together > found.own + (48 << 20)
    child = int(said.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_a_process_that_ends_gives_its_answer(tmp_path: Path) -> None:
    found = watched(["-c", _PARENT, str(tmp_path / "child"), "0.5"], 1)
    assert found.answer == {"done": True}
