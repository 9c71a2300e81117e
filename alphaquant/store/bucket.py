"""A folder on s3://, gs:// or anything else that fsspec reaches: bytes by name, and errors a user understands.

Names are relative to the URL and use slashes. Passing network failures are retried by the driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from alphaquant.errors import AlphaQuantError, StoreError, UserError, first_line
from alphaquant.store.files import raise_if_full
from alphaquant.store.parallel import side_by_side

PROBE = "probe.json"
_PIECE = 8 * 2**20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_TIMES = ("LastModified", "mtime", "updated", "last_modified", "created")
_EXISTS = ("409", "412")
"""HTTP statuses of a refused conditional write."""


@dataclass(frozen=True)
class Entry:
    """What a listing tells of a file."""

    size: int
    modified: float
    """Seconds since 1970 by the server's clock; many servers round to whole seconds."""


class Bucket:
    """Files below one URL. Nothing is asked of the network before the first use."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._guard = threading.Lock()
        self._opened: tuple[int, Any, str] | None = None
        self._exclusive: bool | None = None

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.url,)

    def check(self) -> None:
        """Raise UserError unless files can be written here and read back."""
        try:
            self.write(PROBE, json.dumps({"checked by": socket.gethostname()}).encode())
            if self.read(PROBE) is None:
                raise StoreError(f"a file that was just written to {self.url} is not there")
        except StoreError as error:
            raise UserError(
                f"{error} Name a store that you may write with --store or ALPHAQUANT_STORE."
            ) from error

    def read(self, name: str) -> bytes | None:
        """Content of a file; None when it is absent. Raises StoreError when that cannot be said."""
        try:
            with self._explained("read", absent=True) as (fs, base):
                content: bytes = fs.cat_file(f"{base}/{name}")
                return content
        except FileNotFoundError:
            return None

    def read_many(self, names: Iterable[str]) -> list[bytes | None]:
        """Contents of many small files, asked for side by side."""
        return side_by_side(self.read, names)

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole. Raises StoreError."""
        with self._explained("write") as (fs, base):
            fs.pipe_file(f"{base}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; False when it does. Only as good as `exclusive()`."""
        with self._explained("write") as (fs, base):
            path = f"{base}/{name}"
            try:
                if fs.async_impl:
                    fs.pipe_file(path, content, mode="create")
                else:
                    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                    with fs.open(path, "xb") as file:
                        file.write(content)
            except Exception as error:
                if isinstance(error, FileExistsError) or _was_refused(error):
                    return False
                raise
        return True

    def exclusive(self) -> bool:
        """Whether `create` refuses to overwrite here, found by trying.

        True on Amazon S3, Google Cloud Storage, Azure, current MinIO and Ceph, and folders. Servers that do
        not know conditional writes overwrite silently, and some drivers do not offer the mode.
        """
        if self._exclusive is None:
            self.write(PROBE, b"{}")
            try:
                self._exclusive = not self.create(PROBE, b"{}")
            except StoreError:
                self._exclusive = False
        return self._exclusive

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are gone already are fine."""

        def remove(name: str) -> None:
            with (
                contextlib.suppress(FileNotFoundError),
                self._explained("remove from", absent=True) as (fs, base),
            ):
                fs.rm_file(f"{base}/{name}")

        side_by_side(remove, names)

    def copy(self, name: str, to: str) -> None:
        """Copy a file inside the bucket; the server does it. Raises FileNotFoundError, StoreError."""
        with self._explained("write", absent=True) as (fs, base):
            fs.cp_file(f"{base}/{name}", f"{base}/{to}")

    def sha256(self, name: str) -> str | None:
        """Hash of a file's content, read piece by piece; None when it is absent. Raises StoreError."""
        try:
            with (
                self._explained("read", absent=True) as (fs, base),
                fs.open(f"{base}/{name}", "rb", block_size=_PIECE) as file,
            ):
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def files(self, folder: str) -> dict[str, Entry]:
        """Everything below a folder ("" for all), by name relative to it; asks once per thousand files."""
        try:
            with self._explained("list", absent=True) as (fs, base):
                start = f"{base}/{folder}".rstrip("/") + "/"
                found = fs.find(start.rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(start): Entry(int(info["size"]), _modified(info))
            for path, info in found.items()
            if path.startswith(start) and path != start
        }

    def upload(self, folder: Path, names: Iterable[str], to: str) -> None:
        """Copy files of a local folder below `to`, several at a time."""

        def put(name: str) -> None:
            with self._explained("write") as (fs, base):
                fs.put_file(str(folder / name), f"{base}/{to}/{name}")

        side_by_side(put, names)

    def download(self, place: str, names: Sequence[str], folder: Path) -> None:
        """Copy files below `place` into a local folder, several at a time.

        Raises FileNotFoundError for one that is not there.
        """
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)

        def get(name: str) -> None:
            with self._explained("read", absent=True) as (fs, base):
                try:
                    fs.get_file(f"{base}/{place}/{name}", str(folder / name))
                except OSError as error:
                    raise_if_full(error, folder)
                    raise

        side_by_side(get, names)

    @contextlib.contextmanager
    def _explained(self, doing: str, *, absent: bool = False) -> Iterator[tuple[Any, str]]:
        """The file system and our folder on it; what goes wrong becomes a StoreError.

        `absent` lets FileNotFoundError through.
        """
        connection = self._connection()
        try:
            yield connection
        except AlphaQuantError:
            raise
        except Exception as error:
            if absent and isinstance(error, FileNotFoundError):
                raise
            raise StoreError(
                f"cannot {doing} {self.url}: {first_line(error)}. {_hint(error)} Finished work is kept."
            ) from error

    def _connection(self) -> tuple[Any, str]:
        with self._guard:
            # a connection of the parent process is of no use in a forked child
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), *_open(self.url))
            return self._opened[1:]


def _open(url: str) -> tuple[Any, str]:
    """File system and path of a URL, with nothing cached: other machines write there too."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True
    try:
        fs, base = url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        need = f"pip install 'alphaquant[{extra}]'" if extra else first_line(error)
        raise UserError(f"the store {url} needs a driver that is not installed: {need}.") from error
    except ValueError as error:
        raise UserError(
            f"{url} is no store: {first_line(error)}. Write a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER "
            "or another URL that fsspec knows."
        ) from error
    return fs, base.rstrip("/")


def _modified(info: dict[str, Any]) -> float:
    value = next((info[key] for key in _TIMES if info.get(key) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _was_refused(error: BaseException | None) -> bool:
    """Whether a server answered that the file exists, or is just being created by another."""
    while error is not None:
        response = getattr(error, "response", None)
        status = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, dict)
            else getattr(error, "code", getattr(error, "status", None))
        )
        if str(status) in _EXISTS:
            return True
        error = error.__cause__
    return False


def _hint(error: BaseException) -> str:
    if isinstance(error, PermissionError) or "redential" in f"{type(error).__name__}{error}":
        return "Check the credentials and what they may do."
    if isinstance(error, FileNotFoundError):
        return "Create the bucket or correct its name."
    return "Check the network and the address, then give the same command again."
