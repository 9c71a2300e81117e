"""Files of the user's that decide results: their content, not their path, must enter cache keys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alphaquant.errors import DataError
from alphaquant.store.files import sha256_of

_TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl")


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """sha256 by name of every file among `names`; names of hub datasets and tasks are left out.

    A task's YAML may include others and call Python beside it, so its neighbours count too. Raises
    DataError for a file that cannot be read.
    """
    digests: dict[str, str] = {}
    for name in names:
        path = Path(name).expanduser()
        if not path.is_file():
            continue
        related = [path]
        if path.suffix in (".yaml", ".yml"):
            related = [file for file in path.parent.iterdir() if file.suffix in _TASK_FILES]
        for file in sorted(related):
            try:
                digests[file.name] = sha256_of(file)
            except OSError as error:
                raise DataError(f"cannot read {file}: {error.strerror}") from error
    return digests
