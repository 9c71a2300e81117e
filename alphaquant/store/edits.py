"""Code that is edited while it runs: what is in memory is then not what the key says.

A key names the code on disk. A module imported before an edit is older than that, one imported after it newer
than what the key was made of; either way nobody knows which code computed, so nothing is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from alphaquant.errors import StoreError
from alphaquant.store.fingerprint import LIBRARY, source_of

_WATCHED = (LIBRARY, "tasks")
_CODE = ("*.py", "*.c", "*.h")


def _time_of(source: Path) -> int | None:
    """When a file was written (ns); None when it is gone, or a link to nothing as editors leave them."""
    try:
        return source.stat().st_mtime_ns
    except OSError:
        return None


def _times() -> dict[Path, int | None]:
    found: dict[Path, int | None] = {}
    for package in _WATCHED:
        if (source := source_of(package)) is not None:
            for pattern in _CODE:
                found |= {path: _time_of(path) for path in source.parent.rglob(pattern)}
    return found


_AT_START = _times()


class CodeGuard:
    """Made before a stage computes; `check` before each result that is kept."""

    def __init__(self, code: Mapping[str, str]) -> None:
        """Raises StoreError when the code was edited after this process had started."""
        self._sources: dict[str, Path] = {}
        for label in code:
            name, _, file = label.partition("/")
            if name.partition(".")[0] in _WATCHED and (source := source_of(name)) is not None:
                self._sources[name] = source
                if any(Path(file).match(pattern) for pattern in _CODE):  # C, read when it is used
                    self._sources[label] = source.parent / file
        self._loaded: set[str] = set()
        self.check()
        self._loaded = set(sys.modules)

    def check(self) -> None:
        """Raise StoreError when a module that was not loaded yet may have been loaded after an edit."""
        edited = sorted(
            name
            for name, source in self._sources.items()
            if name not in self._loaded and _AT_START.get(source) != _time_of(source)
        )
        if edited:
            raise StoreError(
                f"{', '.join(edited[:3])} changed on disk after this process had started, so it is not known "
                "which code ran. Finished stages and blocks are kept: give the same command again."
            )
