from __future__ import annotations

import subprocess
import sys

import pytest

from alphaquant import resident

_PAGES = """
import resource, sys
import alphaquant, torch
from alphaquant.resident import return_at_once

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        freed = torch.ones(3_000_000) * 2
        del freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "limited" in sys.argv:
    return_at_once()
print(min(faults() for _ in range(5)))
"""


def _faults(argument: str = "", **chosen: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PAGES, argument],
        env={"OMP_NUM_THREADS": "1", **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(resident._from_libc("mallopt") is None, reason="not glibc")
def test_pages_of_what_is_freed_are_cleared_once_unless_somebody_chose() -> None:
    """240 MB are 58,600 pages of 4 KB, or as few as 120 of 2 MB.

    The least of several rounds counts: whatever the heap holds between two tensors can make it grow once more.
    """
    kept = _faults()
    assert kept < 100
    assert _faults("limited") > kept + 100
    assert _faults(MALLOC_TRIM_THRESHOLD_="131072") > kept + 100
    assert _faults(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") > kept + 100
    assert _faults(MALLOC_ARENA_MAX="2") < 100
