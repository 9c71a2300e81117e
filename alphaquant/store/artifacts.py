"""The content-addressed store: an artifact is an immutable folder named by the digest of its manifest.

```
objects/<kind>/<dd>/<digest>/...   the files and MANIFEST.json (path, size, sha256 of each)
stat/<kind>/<digest>.json          size, mtime and inode of the files when they were last hashed
tmp/<uuid>/                        drafts; a draft becomes an object by one rename
keys/ runs/ locks/ cache/          what made which artifact, run manifests, locks, model digests
```
The digest holds no path, so the whole store can be moved or mounted elsewhere. `remote.py` keeps the same store
in a bucket.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
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
    write_json,
    writing_to,
)
from alphaquant.store.lock import locked
from alphaquant.store.scratch import Scratch
from alphaquant.store.usage import note_use, noting_use

MANIFEST = "MANIFEST.json"
REFS = "refs.json"


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
    """Artifacts under one root folder. Nothing is created before the first draft.

    `location` is what a user calls the store: the root, or the URL that the root is a cache of.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.location = str(self.root)
        self.heals = True
        """Whether a look at an artifact may mend the store. Off for a store that is only asked, not used."""
        self._scratch = Scratch(self.root)

    def reach(self) -> None:
        """Make sure that what lies behind the root folder answers. Raises UserError."""

    def place(self, ref: ArtifactRef) -> Path:
        """Where the files of an artifact are or would be on this machine."""
        return self.root / "objects" / ref.kind / ref.digest[:2] / ref.digest

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of an artifact that is to be read."""
        return self.place(ref)

    def mark_used(self, ref: ArtifactRef) -> None:
        """Tell other machines, which do not see the root folder, that an artifact is about to be used."""

    @contextlib.contextmanager
    def draft(self, kind: str) -> Iterator[Draft]:
        """Fill `draft.path`, then leave the context: the folder is fsynced and renamed into place.

        On an exception, or after `draft.discard()`, nothing stays. Raises UserError when the store may
        not be written and StoreError when the disk is full.
        """
        with self._scratch.folder() as folder:
            draft = Draft(kind, folder)
            try:
                yield draft
            except Exception as error:
                raise_if_full(error, self.root)
                raise
            if not draft.discarded:
                with writing_to(self.root):
                    draft.ref = self._commit(draft)

    def verify(self, ref: ArtifactRef, *, full: bool = False) -> None:
        """Check that an artifact, and every artifact it points to, is there and unharmed.

        Contents are hashed again only when a file's size, mtime or inode changed, or when `full`.
        Raises StoreError that says what is wrong.
        """
        if problem := self.problem(ref, full=full):
            raise StoreError(f"artifact {ref} in {self.location} is {problem}")

    def problem(self, ref: ArtifactRef, *, full: bool = False) -> str | None:
        """What is wrong with an artifact in a few words, or None."""
        if problem := self._damage(ref, full=full):
            return problem
        for name, child in self.children(ref).items():
            if problem := self.problem(child, full=full):
                return f"incomplete: {name} is {problem}"
        return None

    def _damage(self, ref: ArtifactRef, *, full: bool = False) -> str | None:
        """What is wrong with the artifact's own files under the root folder."""
        folder = self.place(ref)
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except OSError:
            return f"damaged: {MANIFEST} cannot be read" if folder.exists() else "missing"
        if hashlib.sha256(manifest).hexdigest() != ref.digest:
            return f"damaged: {MANIFEST} was changed"
        known = {} if full else read_json(self._stat_path(ref))
        known = known if isinstance(known, dict) else {}
        seen: dict[str, list[int]] = {}
        for entry in json.loads(manifest):
            name = entry["path"]
            try:
                seen[name] = stat_mark(folder / name)
                if seen[name][0] != entry["size"]:
                    return f"damaged: {name} has {seen[name][0]} bytes instead of {entry['size']}"
                if known.get(name) != seen[name] and sha256_of(folder / name) != entry["sha256"]:
                    with contextlib.suppress(OSError):  # the next look must not trust it again
                        self._stat_path(ref).unlink()
                    return f"damaged: the content of {name} was changed"
            except FileNotFoundError:
                return f"damaged: {name} is missing"
            except OSError as error:
                return f"damaged: {name} cannot be read ({error.strerror})"
        if seen != known:
            self._remember(ref, seen)
        return None

    def children(self, ref: ArtifactRef) -> dict[str, ArtifactRef]:
        """Artifacts that this one is made of, by name: what its `refs.json` lists."""
        listing = read_json(self.place(ref) / REFS) or {}
        return {name: ArtifactRef.model_validate(entry) for name, entry in listing.items()}

    def read_json(self, name: str) -> Any:
        """A JSON file of the store; None when it is absent or torn."""
        return read_json(self.root / name)

    def read_many(self, names: Iterable[str]) -> list[Any]:
        """Several JSON files of the store, as `read_json` gives each."""
        return [self.read_json(name) for name in names]

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the store, whole."""
        with writing_to(self.root):
            write_json(self.root / name, value)

    def names(self, folder: str) -> list[str]:
        """Names of the JSON files in a folder of the store, the one written last first."""
        found = []
        for path in (self.root / folder).glob("*.json"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stem))
        return [name for _, name in sorted(found, reverse=True)]

    def locked(self, name: str, what: str) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that everybody who uses this store respects; a waiter says what it waits for."""
        return locked(self.root, name, what)

    def _commit(self, draft: Draft) -> ArtifactRef:
        ref, marks = self._seal(draft.path, draft.kind)
        if self._settle(draft.path, ref):
            self._remember(ref, marks)
        return ref

    def _seal(self, folder: Path, kind: str) -> tuple[ArtifactRef, dict[str, list[int]]]:
        """Give a filled folder its manifest and force it to the disk; the artifact's name and stat marks."""
        entries: list[dict[str, Any]] = []
        marks: dict[str, list[int]] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                raise StoreError(f"{name} is no plain file; an artifact holds plain files only")
            path.chmod(0o444)  # files are handed out as hard links: no edit may reach the store
            fsync(path)
            marks[name] = stat_mark(path)
            entries.append({"path": name, "size": marks[name][0], "sha256": sha256_of(path)})
        if not entries:
            raise StoreError(f"a stage wrote nothing into its {kind} artifact")
        entries.sort(key=lambda entry: str(entry["path"]))
        manifest = json.dumps(entries, indent=1).encode()
        (folder / MANIFEST).write_bytes(manifest)
        fsync(folder / MANIFEST)
        for part in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
            fsync(part)
        ref = ArtifactRef(
            kind=kind,
            digest=hashlib.sha256(manifest).hexdigest(),
            size=sum(entry["size"] for entry in entries),
        )
        return ref, marks

    def _settle(self, folder: Path, ref: ArtifactRef) -> bool:
        """Rename a finished draft to its final place; False when an equal, sound object is there."""
        target = self.place(ref)
        for _ in range(3):
            try:
                with noting_use(self):
                    os.utime(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                note_use(self, ref)
                if self._damage(ref) is None:
                    return False
                broken = folder.with_name(uuid.uuid4().hex)
                with contextlib.suppress(FileNotFoundError):
                    target.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
                with contextlib.suppress(OSError):
                    broken.unlink()  # it was no folder
            else:
                fsync(target.parent)
                return True
        raise StoreError(f"cannot replace the damaged artifact {ref} in {self.root}")

    def _stat_path(self, ref: ArtifactRef) -> Path:
        return self.root / "stat" / ref.kind / f"{ref.digest}.json"

    def _remember(self, ref: ArtifactRef, marks: dict[str, list[int]]) -> None:
        # a store that may only be read still gives hits: it is hashed each time
        with contextlib.suppress(UserError, StoreError):
            self.write_json(f"stat/{ref.kind}/{ref.digest}.json", marks)
