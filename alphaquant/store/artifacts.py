"""The content-addressed store: an artifact is an immutable folder named by the digest of its manifest.

```
objects/<kind>/<dd>/<digest>/...   the files and MANIFEST.json (path, size, sha256 of each)
stat/<kind>/<digest>.json          size, mtime and inode of the files when they were last hashed
tmp/<uuid>/                        drafts; a draft becomes an object by one rename
keys/ runs/ locks/ cache/          what made which artifact, run manifests, locks, model digests
```
The digest holds no path, so the whole store can be moved or mounted elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alphaquant.errors import StoreError, UserError
from alphaquant.store.files import (
    fsync,
    raise_if_full,
    read_json,
    sha256_of,
    stat_mark,
    try_lock,
    write_json,
    writing_to,
)
from alphaquant.store.lock import locked

MANIFEST = "MANIFEST.json"
REFS = "refs.json"
_STALE_SECONDS = 10


class ArtifactRef(BaseModel):
    """The small name of an artifact: the only thing stages pass to each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    size: int
    """Bytes of all files."""

    def cache_identity(self) -> dict[str, str]:
        """What enters a cache key."""
        return {"kind": self.kind, "digest": self.digest}

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest[:12]}"


class Draft:
    """A folder that is being filled; `ref` is set once it has become an artifact."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.ref: ArtifactRef | None = None
        self.discarded = False

    def discard(self) -> None:
        """Leave the draft behind without making an artifact of it."""
        self.discarded = True


class ArtifactStore:
    """Artifacts under one root folder. Nothing is created before the first draft."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.location = str(self.root)
        self._swept = False

    def place(self, ref: ArtifactRef) -> Path:
        """Where the files of an artifact are or would be on this machine."""
        return self.root / "objects" / ref.kind / ref.digest[:2] / ref.digest

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of an artifact that is to be read."""
        return self.place(ref)

    @contextlib.contextmanager
    def draft(self, kind: str) -> Iterator[Draft]:
        """Fill `draft.path`, then leave the context: the folder is fsynced and renamed into place.

        On an exception, or after `draft.discard()`, nothing stays. Raises UserError when the store may
        not be written and StoreError when the disk is full.
        """
        with writing_to(self.root):
            self._sweep()
            draft = Draft(kind, self.root / "tmp" / uuid.uuid4().hex)
            draft.path.mkdir(parents=True)
            claim = os.open(draft.path, os.O_RDONLY)
            try_lock(claim)
        try:
            try:
                yield draft
            except OSError as error:
                raise_if_full(error, self.root)
                raise
            if not draft.discarded:
                with writing_to(self.root):
                    draft.ref = self._commit(draft)
        finally:
            os.close(claim)
            shutil.rmtree(draft.path, ignore_errors=True)

    def verify(self, ref: ArtifactRef, *, full: bool = False) -> None:
        """Check that an artifact, and every artifact it points to, is there and unharmed.

        Contents are hashed again only when a file's size, mtime or inode changed, or when `full`.
        Raises StoreError that says what is wrong.
        """
        if problem := self.problem(ref, full=full):
            raise StoreError(f"artifact {ref} in {self.root} is {problem}")

    def problem(self, ref: ArtifactRef, *, full: bool = False) -> str | None:
        """What is wrong with an artifact in a few words, or None."""
        folder = self.place(ref)
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except OSError:
            return f"damaged: {MANIFEST} cannot be read" if folder.exists() else "missing"
        if hashlib.sha256(manifest).hexdigest() != ref.digest:
            return f"damaged: {MANIFEST} was changed"
        known = {} if full else read_json(self._stat_path(ref)) or {}
        seen: dict[str, list[int]] = {}
        for entry in json.loads(manifest):
            name = entry["path"]
            try:
                seen[name] = stat_mark(folder / name)
                if seen[name][0] != entry["size"]:
                    return f"damaged: {name} has {seen[name][0]} bytes instead of {entry['size']}"
                if known.get(name) != seen[name] and sha256_of(folder / name) != entry["sha256"]:
                    return f"damaged: the content of {name} was changed"
            except FileNotFoundError:
                return f"damaged: {name} is missing"
            except OSError as error:
                return f"damaged: {name} cannot be read ({error.strerror})"
        if seen != known:
            self._remember(ref, seen)
        for name, child in self.children(ref).items():
            if problem := self.problem(child, full=full):
                return f"incomplete: {name} is {problem}"
        return None

    def children(self, ref: ArtifactRef) -> dict[str, ArtifactRef]:
        """Artifacts that this one is made of, by name: what its `refs.json` lists."""
        listing = read_json(self.place(ref) / REFS) or {}
        return {name: ArtifactRef.model_validate(entry) for name, entry in listing.items()}

    def read_json(self, name: str) -> Any:
        """A JSON file of the store; None when it is absent or torn."""
        return read_json(self.root / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the store, whole."""
        with writing_to(self.root):
            write_json(self.root / name, value)

    def names(self, folder: str) -> list[str]:
        """Names of the JSON files in a folder of the store, the one written last first."""
        found = []
        for path in (self.root / folder).glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stem))
        return [name for _, name in sorted(found, reverse=True)]

    def locked(self, name: str, what: str) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that everybody who uses this store respects; a waiter says what it waits for."""
        return locked(self.root, name, what)

    def _commit(self, draft: Draft) -> ArtifactRef:
        entries: list[dict[str, Any]] = []
        marks: dict[str, list[int]] = {}
        for path in sorted(draft.path.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(draft.path).as_posix()
            if path.is_symlink() or not path.is_file():
                raise StoreError(f"{name} is no plain file; an artifact holds plain files only")
            path.chmod(0o444)  # files are handed out as hard links: no edit may reach the store
            fsync(path)
            marks[name] = stat_mark(path)
            entries.append({"path": name, "size": marks[name][0], "sha256": sha256_of(path)})
        if not entries:
            raise StoreError(f"a stage wrote nothing into its {draft.kind} artifact")
        entries.sort(key=lambda entry: str(entry["path"]))
        manifest = json.dumps(entries, indent=1).encode()
        (draft.path / MANIFEST).write_bytes(manifest)
        fsync(draft.path / MANIFEST)
        for folder in (*(path for path in draft.path.rglob("*") if path.is_dir()), draft.path):
            fsync(folder)
        ref = ArtifactRef(
            kind=draft.kind,
            digest=hashlib.sha256(manifest).hexdigest(),
            size=sum(entry["size"] for entry in entries),
        )
        if self._settle(draft.path, ref):
            self._remember(ref, marks)
        return ref

    def _settle(self, folder: Path, ref: ArtifactRef) -> bool:
        """Rename a finished draft to its final place; False when an equal, sound object is there."""
        target = self.place(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if self.problem(ref) is None:
                    return False
                broken = folder.with_name(uuid.uuid4().hex)
                with contextlib.suppress(FileNotFoundError):
                    target.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
            else:
                fsync(target.parent)
                return True
        raise StoreError(f"cannot replace the damaged artifact {ref} in {self.root}")

    def _sweep(self) -> None:
        """Remove drafts whose process died: nobody holds their lock any more."""
        if self._swept:
            return
        self._swept = True
        tmp = self.root / "tmp"
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

    def _stat_path(self, ref: ArtifactRef) -> Path:
        return self.root / "stat" / ref.kind / f"{ref.digest}.json"

    def _remember(self, ref: ArtifactRef, marks: dict[str, list[int]]) -> None:
        # a store that may only be read still gives hits: it is hashed each time
        with contextlib.suppress(UserError, StoreError):
            self.write_json(f"stat/{ref.kind}/{ref.digest}.json", marks)
