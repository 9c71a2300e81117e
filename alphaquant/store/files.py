"""Small file operations that must not be done by halves: whole writes, hashes, locks, refusals explained."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alphaquant.errors import StoreError, UserError, first_line

FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID_IN_RUST = tuple(f"(os error {number})" for number in FULL)
_IN_THE_WAY = (errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def writing_to(root: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `root` into errors a user understands.

    Raises UserError when writing is not allowed, StoreError when the disk is full or something is in the way.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise UserError(
                f"cannot write the artifact store {root}: {error.strerror}. Name a folder you may "
                "write with --store DIR or ALPHAQUANT_STORE (for the cache of a remote store: ALPHAQUANT_CACHE)."
            ) from error
        raise_if_full(error, root)
        if error.errno in _IN_THE_WAY:
            raise StoreError(
                f"something is in the way at {error.filename2 or error.filename} in the artifact store: "
                f"{error.strerror}. `alphaquant fsck` puts aside what does not belong there."
            ) from error
        raise


def raise_if_full(error: Exception, root: Path) -> None:
    """Raise StoreError when `error` says that the disk below `root` has no space left."""
    # safetensors has an exception of its own
    said = str(error).endswith(_SAID_IN_RUST)
    if error.errno in FULL if isinstance(error, OSError) else said:
        raise StoreError(
            f"the disk of {root} is full ({first_line(error)}). Free some space or name another folder "
            "with --store DIR (for the cache of a remote store: ALPHAQUANT_CACHE); finished stages are kept."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file whole: a reader sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A JSON file's value, or None when it is absent, unreadable or torn."""
    try:
        return parse_json(path.read_bytes())
    except OSError:
        return None


def parse_json(content: bytes | None) -> Any:
    """The value of a JSON file's content, or None when there is none or it is torn."""
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's listing, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_mark(path: Path) -> list[int]:
    """Size, mtime and inode: while they stay, the content is taken to stay too."""
    stat = path.lstat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def try_lock(handle: int) -> bool:
    """Take an exclusive lock on an open file or folder, unless another holder has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cache_base() -> Path:
    """Where files are that can be made again: ALPHAQUANT_CACHE, else ~/.cache/alphaquant."""
    return Path(os.environ.get("ALPHAQUANT_CACHE") or Path.home() / ".cache" / "alphaquant")
