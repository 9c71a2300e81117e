"""What is kept of every measurement, and the medians that the page shows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from benchmarks.rivals.process import Usage, environment, last_words, measured

# transformers imports lazily: the class that all of its models share brings what any of them needs
_BARE = "import torch; from transformers import PreTrainedModel"
_BARE_OF = {"alpha": "import torch"}
"""By part; who looks at weights alone needs no transformers."""


@dataclass(frozen=True, slots=True)
class Run:
    """One program's run on one case."""

    part: str
    """alpha, quantize, memory or tuned."""
    case: str
    """The model and what it is quantized with."""
    program: str
    """Name with version."""
    setting: str
    seconds: float
    """Of the work alone: imports and loading left out where the program lets them be told apart."""
    cpu_seconds: float
    wall: float
    """Of the whole process."""
    cpu: float
    peak_bytes: int
    """Largest resident size of the process and its children."""
    bare_bytes: int
    """The same of the program's Python with torch, and for all but alpha transformers, imported and nothing else done."""
    load: float
    """Of the machine as the run began."""
    commit: str
    """Of the program that measured."""
    failed: str = ""
    """Why there is no result."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What repeats have in common."""
        return self.part, self.case, self.program, self.setting


def read(path: Path) -> list[Run]:
    """Runs of a table; none when there is no file."""
    if not path.is_file():
        return []
    names = [field.name for field in fields(Run)]
    return [Run(**row) for row in pd.read_parquet(path)[names].to_dict("records")]


def write(path: Path, runs: Sequence[Run]) -> None:
    """A row per run."""
    pd.DataFrame([asdict(run) for run in runs]).to_parquet(path, index=False)


def medians(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per part, case, program and setting: medians of what did not fail, and `repeats`."""
    table = pd.DataFrame([asdict(run) for run in runs if not run.failed])
    if table.empty:
        return table
    table["above_bytes"] = table["peak_bytes"] - table["bare_bytes"]
    keys = ["part", "case", "program", "setting"]
    numbers = ["seconds", "cpu_seconds", "wall", "cpu", "peak_bytes", "above_bytes", "load"]
    groups = table.groupby(keys, sort=False)
    return groups[numbers].median().assign(repeats=groups.size()).reset_index()


def bare_bytes(python: str, part: str, folder: Path, threads: int) -> int:
    """Memory of a Python that has imported what any program of a part needs."""
    used = checked(
        [python, "-c", _BARE_OF.get(part, _BARE)], folder / "bare.txt", threads, limit=600
    )
    return used.peak_bytes


def checked(command: Sequence[str], log: Path, threads: int, *, limit: float, **more: str) -> Usage:
    """Run a command; raises CalledProcessError with its last words when it fails."""
    used = measured(command, log, environment=environment(threads, **more), limit=limit)
    if used.code:
        raise subprocess.CalledProcessError(used.code, list(command), last_words(log))
    return used
