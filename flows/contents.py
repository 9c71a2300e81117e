"""Files of the user's that decide results: their content must enter cache keys, not their name alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from alphaquant.errors import DataError
from alphaquant.models.resolve import FACTS
from alphaquant.store.files import read_json, sha256_of

_TASK_SUFFIXES = frozenset(
    ".yaml .yml .py .json .jsonl .csv .tsv .txt .parquet .arrow".split()  # noqa: SIM905
)
_MOST_FILES = 2000
_SUMMARIES = ("summary.json", FACTS)


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """sha256 of every file among `names`; names of hub datasets and tasks are left out.

    A task's YAML may include others, call Python and read data beside and below it, so these files
    count too. They are named by the task as it was given and their path from the task's folder.
    Raises DataError for a file that cannot be read and for a task folder with too many files.
    """
    digests: dict[str, str] = {}
    for name in names:
        path = Path(name).expanduser()
        if not path.is_file():
            continue
        try:
            digests[name] = sha256_of(path)
            if path.suffix in (".yaml", ".yml"):
                for file in _related(path):
                    digests[f"{name}: {file.relative_to(path.parent).as_posix()}"] = sha256_of(file)
        except OSError as error:
            raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error
    return digests


def _related(task: Path) -> list[Path]:
    """Files beside and below a task's YAML that it may use; at most `_MOST_FILES`."""
    found: list[Path] = []
    for file in _walk(task.parent):
        if file != task:
            found.append(file)
        if len(found) > _MOST_FILES:
            raise DataError(
                f"the folder of the task {task} holds more than {_MOST_FILES} files that the task may "
                "use. Put the task and its data into a folder of their own."
            )
    return sorted(found)


def _walk(top: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(top):
        below[:] = [name for name in below if _may_hold_sources(Path(folder, name))]
        for name in files:
            path = Path(folder, name)
            if path.suffix in _TASK_SUFFIXES and not name.startswith(".") and path.is_file():
                yield path


def _may_hold_sources(folder: Path) -> bool:
    """Not hidden and not made by a program: our own results would change the key at each run."""
    if folder.name.startswith(".") or folder.name == "__pycache__":
        return False
    if (folder / "pyvenv.cfg").exists() or all((folder / n).is_dir() for n in ("objects", "keys")):
        return False
    summaries = (read_json(folder / name) for name in _SUMMARIES)
    return not any(isinstance(found, dict) and "run_id" in found for found in summaries)
