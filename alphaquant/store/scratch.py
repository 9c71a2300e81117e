"""Temporary folders of a store: claimed while their process lives, swept by others when it died."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from alphaquant.store.files import try_lock, writing_to

_STALE_SECONDS = 10


class Scratch:
    """`tmp/` of the store at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._swept = False

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder that other processes leave alone; gone afterwards unless it was renamed.

        Raises UserError when the store may not be written and StoreError when the disk is full.
        """
        with writing_to(self._root):
            self._sweep()
            folder = self._root / "tmp" / uuid.uuid4().hex
            folder.mkdir(parents=True)
            claim = os.open(folder, os.O_RDONLY)
            try_lock(claim)
        try:
            yield folder
        finally:
            os.close(claim)
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove folders whose process died: nobody holds their lock any more."""
        if self._swept:
            return
        self._swept = True
        tmp = self._root / "tmp"
        for folder in tmp.iterdir() if tmp.is_dir() else ():
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime < _STALE_SECONDS:
                    continue  # perhaps made a moment ago and not locked yet
                claim = os.open(folder, os.O_RDONLY)
                try:
                    if try_lock(claim):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(claim)
