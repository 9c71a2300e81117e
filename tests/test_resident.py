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
faults()
print(faults())
"""


@pytest.mark.skipif(resident._from_libc("mallopt") is None, reason="not glibc")
@pytest.mark.parametrize(
    ("chosen", "argument", "kept"),
    [
        ({}, "", True),
        ({}, "limited", False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "", False),
    ],
)
def test_pages_of_what_is_freed_are_cleared_once_unless_somebody_chose(
    chosen: dict[str, str], argument: str, kept: bool
) -> None:
    """3 million numbers are 2,930 pages."""
    done = subprocess.run(
        [sys.executable, "-c", _PAGES, argument],
        env=chosen | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    faults = int(done.stdout)
    assert faults < 1_000 if kept else faults > 29_000
