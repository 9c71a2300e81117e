"""A folder that appears whole or not at all: filled under another name beside its place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from alphaquant.errors import StoreError, UserError
from alphaquant.store.files import FULL, try_lock

_DRAFT = re.compile("[0-9a-f]{8}")
_STALE_SECONDS = 10


def check_writable(folder: Path, option: str) -> None:
    """Raise UserError unless files can be made in `folder`, or in what would become its parent."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so {folder} cannot be a folder. Change {option}.")
    try:
        # asking for permission is not enough: file systems may be read-only or virtual
        tempfile.TemporaryDirectory(dir=existing, prefix=".alphaquant-").cleanup()
    except OSError as error:
        hint = "no permission, or a read-only file system"
        if error.errno in FULL:
            hint = "free some space, and the same command goes on"
        raise UserError(
            f"cannot write in {existing} ({error.strerror}: {hint}). Name another folder with {option}."
        ) from error


@contextlib.contextmanager
def whole(out: Path, check: Callable[[Path], None], advice: str) -> Iterator[Path]:
    """Fill a temporary folder beside `out`; leaving the context puts it in the place of `out`.

    `check` raises UserError for a folder that must not be replaced; `advice` ends the message of a full disk.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    old = draft.with_name(f"{draft.name}.old")
    with _alone_in(out.parent):
        check(out)
        _sweep(out)
    claim = -1
    try:
        draft.mkdir()
        claim = os.open(draft, os.O_RDONLY)
        try_lock(claim)
        yield draft
        with _alone_in(out.parent):
            check(out)
            if out.exists():
                out.rename(old)
            draft.rename(out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreError(f"the disk of {out} is full ({error.strerror}). {advice}") from error
    finally:
        if old.exists() and not out.exists():  # the draft did not get there
            old.rename(out)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        if claim >= 0:
            os.close(claim)


def _sweep(out: Path) -> None:
    """Remove what killed runs left beside `out`: drafts that nobody holds any more."""
    for draft in out.parent.glob(f".{out.name}.*"):
        if not _DRAFT.fullmatch(draft.name.removeprefix(f".{out.name}.")):
            continue
        with contextlib.suppress(OSError):
            claim = os.open(draft, os.O_RDONLY)
            try:
                # a folder made a moment ago may not be held yet
                if time.time() - draft.stat().st_mtime > _STALE_SECONDS and try_lock(claim):
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                os.close(claim)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from replacing a folder in `folder` at the same moment."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
