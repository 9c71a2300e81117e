"""A store in a bucket, as fsck sees it.

A full check reads every file once, as a stream; a fast one takes the sizes of a listing, and reads manifests only.
Artifacts without a manifest are uploads under way, or that broke off: nobody counts them, and gc removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePath, PurePosixPath
from typing import Any, TypeVar

from alphaquant.progress import reporter
from alphaquant.store.artifacts import MANIFEST, REFS, ArtifactRef
from alphaquant.store.inspection import folder_of
from alphaquant.store.parallel import side_by_side
from alphaquant.store.records import KeyRecord
from alphaquant.store.remote import NotWhole, RemoteStore
from alphaquant.upkeep.bucket_listing import artifacts_in, jsons_in, manifests_in, record_in, ref_of
from alphaquant.upkeep.consequences import Name, name_of
from alphaquant.upkeep.inventory import QUARANTINE, Stored
from alphaquant.upkeep.soundness import TORN_MANIFEST, TORN_RECORD, Check

R = TypeVar("R")


class BucketSite:
    """Looks at a bucket. Raises UserError when there is no store, StoreError when it does not answer."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._bucket = store.remote
        self._found = artifacts_in(store)
        self._when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")

    def artifacts(self, *, fast: bool) -> list[Check]:
        """Every artifact that has a manifest, looked at."""
        names = [name for name, files in self._found.items() if MANIFEST in files]
        texts = _in_threads(
            self._bucket.read, [f"{_place(name)}/{MANIFEST}" for name in names], "manifests"
        )
        checks = []
        contents: dict[str, tuple[Check, dict[str, Any]]] = {}
        for name, text in zip(names, texts, strict=True):
            check = Check(Stored(*name, self._store.place(ref_of(name))), None)
            checks.append(check)
            for entry in self._listed(check, text):
                if problem := self._size_problem(check, entry):
                    check.problems.append(problem)
                else:
                    contents[f"{_place(name)}/{entry['path']}"] = check, entry
        digests = [] if fast else _in_threads(self._bucket.sha256, contents, "files")
        for (check, entry), digest in zip(contents.values(), digests, strict=not fast):
            if digest != entry["sha256"]:
                check.problems.append(f"the content of {entry['path']} was changed")
        checks = [check for check in checks if not check.problems or self._as_it_was(check)]
        side_by_side(self._find_children, (check for check in checks if not check.problems))
        return checks

    def records(self) -> tuple[list[KeyRecord], list[tuple[PurePath, str]]]:
        """Every key record, and files that hold none."""
        names = [name for name in jsons_in(self._store, "keys") if name.count("/") == 1]
        found = _in_threads(partial(record_in, self._store), names, "records")
        torn = [
            (PurePosixPath("keys", name), TORN_RECORD)
            for name, record in zip(names, found, strict=True)
            if record is None and self._bucket.read(f"keys/{name}") is not None
        ]
        return [record for record in found if record], [*torn]

    def manifests(self) -> tuple[list[dict[str, Any]], list[tuple[PurePath, str]]]:
        """Every run manifest, and files that hold none."""
        found = {run_id: manifest for run_id, (manifest, _) in manifests_in(self._store).items()}
        torn = [run_id for run_id, manifest in found.items() if manifest is None]
        return [manifest for manifest in found.values() if manifest is not None], [
            (PurePosixPath("runs", f"{run_id}.json"), TORN_MANIFEST) for run_id in torn
        ]

    def left_over(self) -> dict[str, int]:
        """Artifacts without a manifest."""
        count = sum(MANIFEST not in files for files in self._found.values())
        return {"unfinished uploads": count} if count else {}

    def in_the_way(self) -> list[tuple[PurePath, str]]:
        """Nothing is: a bucket has no folders."""
        return []

    def has(self, ref: ArtifactRef) -> bool:
        """Whether an artifact has a manifest."""
        return MANIFEST in self._bucket.files(folder_of(ref))

    def put_aside(self, check: Check) -> str | None:
        """Move an artifact, or the files that do not belong to it; None when a run replaced it meanwhile."""
        ref = check.stored.ref
        place, target = folder_of(ref), f"{QUARANTINE}/{ref.kind}/{ref.digest}-{self._when}"
        with self._store.use.removing("fsck"):
            if not self._as_it_was(check):
                return None
            names = list(self._found[name_of(ref)]) if check.problems else check.extra
            side_by_side(lambda n: self._bucket.copy(f"{place}/{n}", f"{target}/{n}"), names)
            if check.problems:
                self._bucket.remove([f"{place}/{MANIFEST}"])  # a miss, whatever happens next
            self._bucket.remove(f"{place}/{name}" for name in names)
        return f"{self._store.location}/{target}"

    def put_file_aside(self, path: PurePath) -> str:
        """Move a record or a run manifest."""
        target = f"{QUARANTINE}/{path.parent}/{path.stem}-{self._when}.json"
        with contextlib.suppress(FileNotFoundError):  # another fsck was faster
            self._bucket.copy(str(path), target)
        self._bucket.remove([str(path)])
        return f"{self._store.location}/{target}"

    def mended(self, check: Check) -> bool:
        """Whether this machine's copy was whole and is in the bucket now."""
        return self._store.mend(check.stored.ref)

    def remember(self, check: Check) -> None:
        """Nothing is remembered: a file in a bucket tells nothing that would betray a change."""

    def _listed(self, check: Check, manifest: bytes | None) -> list[dict[str, Any]]:
        """What a manifest lists; notes what is wrong with it, and files beside it."""
        ref = check.stored.ref
        if manifest is None or hashlib.sha256(manifest).hexdigest() != ref.digest:
            check.problems.append(f"{MANIFEST} was changed")
            return []
        entries: list[dict[str, Any]] = json.loads(manifest)
        listed = {MANIFEST, *(entry["path"] for entry in entries)}
        check.extra = sorted(self._found[name_of(ref)].keys() - listed)
        return entries

    def _size_problem(self, check: Check, entry: dict[str, Any]) -> str | None:
        found = self._found[name_of(check.stored.ref)].get(entry["path"])
        if found is None:
            return f"{entry['path']} is missing"
        check.marks[entry["path"]] = [found.size]
        if found.size != entry["size"]:
            return f"{entry['path']} has {found.size} bytes instead of {entry['size']}"
        return None

    def _as_it_was(self, check: Check) -> bool:
        """Whether the files are those that were looked at: a run may have replaced or removed them."""
        ref = check.stored.ref
        return self._bucket.files(folder_of(ref)) == self._found[name_of(ref)]

    def _find_children(self, check: Check) -> None:
        if REFS in check.marks:
            try:
                check.children = self._store.children(check.stored.ref)
            except NotWhole:  # its size is right
                check.problems.append(f"the content of {REFS} was changed")


def _place(name: Name) -> str:
    return folder_of(ref_of(name))


def _in_threads(function: Callable[[str], R], names: Iterable[str], what: str) -> list[R]:
    """Results for all names, asked for side by side; progress is reported."""
    names, target, counting = list(names), reporter(), threading.Lock()
    done = 0
    target.update(what, 0, len(names))

    def counted(name: str) -> R:
        nonlocal done
        result = function(name)
        with counting:
            done += 1
            target.update(what, done, len(names))
        return result

    return side_by_side(counted, names)
