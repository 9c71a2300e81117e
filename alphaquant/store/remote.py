"""The same store in a bucket, with a local cache: workers without a shared disk share their hits.

The bucket is laid out like a local store. What it says of keys and runs is true; artifacts are kept in the root
folder as well and fetched when they are read. An artifact counts when its manifest is in the bucket, which is
uploaded last, and every file has its size; contents are hashed when they are fetched. The local copy of an
artifact may be removed at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alphaquant.errors import StoreError, UserError
from alphaquant.progress import reporter
from alphaquant.sizes import size_text
from alphaquant.store.artifacts import MANIFEST, REFS, ArtifactRef, ArtifactStore, Draft
from alphaquant.store.bucket import Bucket
from alphaquant.store.files import cache_base, parse_json, writing_to
from alphaquant.store.inspection import content_problem, first_difference, folder_of, size_problem
from alphaquant.store.lease import leased
from alphaquant.store.lock import locked, place_of
from alphaquant.store.parallel import side_by_side
from alphaquant.store.shared_use import SharedUse
from alphaquant.store.usage import note_use

TRUST_SECONDS = 30.0
"""How long an artifact that was found sound in the bucket is not looked up again."""
_LOCAL = ("stat", "tmp", "cache", "logs", "locks")
_LARGE = 100 * 2**20


class NotWhole(StoreError):
    """The bucket lacks files of an artifact, or holds others."""


class RemoteStore(ArtifactStore):
    """Artifacts at a URL; the root is a cache of them on this machine."""

    def __init__(self, url: str) -> None:
        super().__init__(cache_folder(url))
        self.location = url
        self.remote = Bucket(url)
        self._trusted: dict[str, float] = {}

    @functools.cached_property
    def use(self) -> SharedUse:
        """What machines say in the bucket of the artifacts that they use."""
        return SharedUse(self.remote, self.root)

    def reach(self) -> None:
        """Raise UserError unless the bucket may be read and written."""
        self.remote.check()

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of an artifact that is to be read, fetched if it is not here or was harmed.

        Raises StoreError when the bucket does not have it whole.
        """
        note_use(self, ref)
        if self._damage(ref):
            with locked(self.root, f"fetch-{ref.digest}", str(ref), "fetching the same"):
                self._fetch(ref)
        return self.place(ref)

    def problem(self, ref: ArtifactRef, *, full: bool = False) -> str | None:
        """What is wrong with an artifact in the bucket, or None.

        An artifact that this machine has whole and the bucket has not is uploaded, if the store `heals`. `full`
        reads and hashes everything, here and there. Raises StoreError when the bucket does not answer.
        """
        if full or time.monotonic() > self._trusted.get(ref.digest, 0.0):
            problem = self._remote_damage(ref, full=full)
            # a harmed copy here does not matter, but a full check must find it: it is fetched again when read
            here_whole = (problem or full) and self._damage(ref, full=full) is None
            if problem and not here_whole:
                return problem
            if problem and self.heals:
                self._upload(ref, again=full)
            elif not problem:
                self._trust(ref)
        children = self.children(ref)
        problems = side_by_side(lambda child: self.problem(child, full=full), children.values())
        for name, problem in zip(children, problems, strict=True):
            if problem:
                return f"incomplete: {name} is {problem}"
        return None

    def mark_used(self, ref: ArtifactRef) -> None:
        """Say in the bucket that an artifact is about to be used; one who may only read it is not seen."""
        with contextlib.suppress(StoreError):
            self.use.mark(ref)

    def mend(self, ref: ArtifactRef) -> bool:
        """Bring an artifact into the bucket again if this machine's copy of it is whole; whether it is."""
        whole = self._damage(ref, full=True) is None
        if whole:
            self._upload(ref, again=True)
        return whole

    def children(self, ref: ArtifactRef) -> dict[str, ArtifactRef]:
        """Artifacts that this one is made of, by name; none of its other files are fetched."""
        entries = json.loads(self._manifest(ref) or b"[]")
        refs = next((entry["sha256"] for entry in entries if entry["path"] == REFS), None)
        content = self._checked(ref, REFS, refs) if refs else b"{}"
        if content is None:
            raise self._gone(ref, f"{REFS} is missing or was changed")
        listing = json.loads(content)
        return {name: ArtifactRef.model_validate(entry) for name, entry in listing.items()}

    def read_json(self, name: str) -> Any:
        """A JSON file of the store; None when it is absent or torn. Raises StoreError without a network."""
        if _is_local(name):
            return super().read_json(name)
        return parse_json(self.remote.read(name))

    def read_many(self, names: Iterable[str]) -> list[Any]:
        """Several JSON files of the store, asked for side by side."""
        return side_by_side(self.read_json, names)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the store, whole. Raises StoreError without a network."""
        if _is_local(name):
            super().write_json(name, value)
        else:
            self.remote.write(name, json.dumps(value, indent=1).encode())

    def names(self, folder: str) -> list[str]:
        """Names of the JSON files in a folder of the store, the one written last first."""
        if _is_local(folder):
            return super().names(folder)
        found = [
            (entry.modified, name.removesuffix(".json"))
            for name, entry in self.remote.files(folder).items()
            if "/" not in name and name.endswith(".json")
        ]
        return [name for _, name in sorted(found, reverse=True)]

    @contextlib.contextmanager
    def locked(self, name: str, what: str) -> Iterator[None]:
        """Hold a lock on this machine and a lease in the bucket; a waiter says what it waits for."""
        with (
            locked(self.root, name, what),
            leased(self.remote, name, what, place_of(self.root)),
        ):
            yield

    def _commit(self, draft: Draft) -> ArtifactRef:
        ref = super()._commit(draft)
        self._upload(ref)
        return ref

    def _remote_damage(self, ref: ArtifactRef, *, full: bool) -> str | None:
        files = self.remote.files(folder_of(ref))
        if MANIFEST not in files:
            return f"damaged: {MANIFEST} is missing" if files else "missing"
        manifest = self._manifest(ref)
        if manifest is None or len(manifest) != files[MANIFEST].size:
            return f"damaged: {MANIFEST} was changed"
        entries = json.loads(manifest)
        if problem := next(
            (text for entry in entries if (text := size_problem(entry, files))), None
        ):
            return problem
        if full:
            return content_problem(self.remote, ref, entries)
        refs = next((entry["sha256"] for entry in entries if entry["path"] == REFS), None)
        if refs and self._checked(ref, REFS, refs) is None:
            return f"damaged: the content of {REFS} was changed"
        return None

    def _manifest(self, ref: ArtifactRef) -> bytes | None:
        return self._checked(ref, MANIFEST, ref.digest)

    def _checked(self, ref: ArtifactRef, name: str, digest: str) -> bytes | None:
        """A small file of an artifact, from wherever it is sound; kept in the cache. None when it is nowhere."""
        kept = self.root / "cache" / "manifests" / f"{digest}.json"
        for path in (self.place(ref) / name, kept):
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
        found = self.remote.read(f"{folder_of(ref)}/{name}")
        if found is None or hashlib.sha256(found).hexdigest() != digest:
            return None
        with contextlib.suppress(UserError, StoreError, OSError), self._scratch.folder() as folder:
            (folder / name).write_bytes(found)
            kept.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(kept)
        return found

    def _upload(self, ref: ArtifactRef, *, again: bool = False) -> None:
        """Bring an artifact that is whole here into the bucket: what is not there by size, or everything `again`."""
        folder, there = self.place(ref), folder_of(ref)
        manifest = (folder / MANIFEST).read_bytes()
        files = self.remote.files(there)
        if files:  # somebody might be removing them
            self.use.pass_gate(ref)
            files = self.remote.files(there)
        wrong = [entry for entry in json.loads(manifest) if again or size_problem(entry, files)]
        if wrong or MANIFEST not in files or self.remote.read(f"{there}/{MANIFEST}") != manifest:
            self._announce("uploading", ref, sum(entry["size"] for entry in wrong))
            self.remote.upload(folder, [entry["path"] for entry in wrong], there)
            self.remote.write(f"{there}/{MANIFEST}", manifest)
        self._trust(ref)

    def _fetch(self, ref: ArtifactRef) -> None:
        if self._damage(ref) is None:
            return  # another process fetched it meanwhile
        bad = None
        for _ in range(2):  # what was harmed on the way comes through the second time
            bad = self._download(ref)
            if bad is None:
                return
        self._trusted.pop(ref.digest, None)
        # without the file the artifact is a miss for everybody, and is made and uploaded again
        self.remote.remove([f"{folder_of(ref)}/{bad}"])
        raise StoreError(
            f"artifact {ref} in {self.location} was damaged: the content of {bad} was changed. The file "
            "was removed; give the same command again, and what is missing is computed anew."
        )

    def _download(self, ref: ArtifactRef) -> str | None:
        """Fetch an artifact into the cache; the name of a file whose content is not what it should be."""
        manifest = self._manifest(ref)
        if manifest is None:
            raise self._gone(ref, f"{MANIFEST} is missing or was changed")
        entries = json.loads(manifest)
        self._announce("fetching", ref, ref.size)
        with self._scratch.folder() as folder, writing_to(self.root):
            try:
                self.remote.download(folder_of(ref), [entry["path"] for entry in entries], folder)
            except FileNotFoundError as error:
                raise self._gone(ref, "a file is missing") from error
            found, marks = self._seal(folder, ref.kind)
            if found.digest != ref.digest:
                return first_difference(folder, entries)
            if self._settle(folder, ref):
                self._remember(ref, marks)
        return None

    def _gone(self, ref: ArtifactRef, why: str) -> NotWhole:
        self._trusted.pop(ref.digest, None)
        return NotWhole(
            f"artifact {ref} is not whole in {self.location}: {why}. Give the same command again, and what "
            "is missing is computed anew."
        )

    def _trust(self, ref: ArtifactRef) -> None:
        self._trusted[ref.digest] = time.monotonic() + TRUST_SECONDS

    def _announce(self, doing: str, ref: ArtifactRef, size: int) -> None:
        if size > _LARGE:
            reporter().note(f"{doing} {ref}, {size_text(size)} ({self.location})")


def cache_folder(url: str) -> Path:
    """Where a remote store is cached: in ALPHAQUANT_CACHE, else in ~/.cache/alphaquant, by its URL."""
    return cache_base() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]


def _is_local(name: str) -> bool:
    return name.partition("/")[0] in _LOCAL
