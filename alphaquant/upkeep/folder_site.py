"""A store in a folder, as fsck sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, TypeVar

from alphaquant.errors import StoreError, UserError
from alphaquant.progress import track
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.files import writing_to
from alphaquant.store.records import KeyRecord
from alphaquant.store.usage import removing
from alphaquant.upkeep.inventory import (
    QUARANTINE,
    artifacts,
    in_the_way,
    key_files,
    left_over,
    root_of,
    run_files,
)
from alphaquant.upkeep.soundness import Check, check_artifacts, manifest_problem, record_problem

T = TypeVar("T")


class FolderSite:
    """Looks at files, and moves what is damaged under a name that tells when. Raises UserError without a store."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._root = root_of(store)
        self._when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")

    def artifacts(self, *, fast: bool) -> list[Check]:
        """Every artifact, looked at."""
        return check_artifacts(self._store, artifacts(self._root), fast=fast)

    def records(self) -> tuple[list[KeyRecord], list[tuple[PurePath, str]]]:
        """Every key record, and files that hold none."""
        files = key_files(self._root)
        return self._sorted_out(
            track(files, "records", len(files)), lambda path: record_problem(self._store, path)
        )

    def manifests(self) -> tuple[list[dict[str, Any]], list[tuple[PurePath, str]]]:
        """Every run manifest, and files that hold none."""
        return self._sorted_out(run_files(self._root), manifest_problem)

    def left_over(self) -> dict[str, int]:
        """Harmless remains that gc removes."""
        return {what: len(paths) for what, paths in left_over(self._root).items() if paths}

    def in_the_way(self) -> list[tuple[PurePath, str]]:
        """Folders and links where runs write files."""
        return [(path.relative_to(self._root), "no plain file") for path in in_the_way(self._root)]

    def has(self, ref: ArtifactRef) -> bool:
        """Whether there is anything of an artifact."""
        return self._store.place(ref).exists()

    def put_aside(self, check: Check) -> str | None:
        """Move an artifact, or the files that do not belong to it; None when a run replaced it meanwhile."""
        stored = check.stored
        target = self._root / QUARANTINE / stored.kind / f"{stored.digest}-{self._when}"
        with writing_to(self._root), removing(self._root):
            if not check.still_there():
                return None
            if check.problems:
                _move(stored.folder, target)
                (self._root / "stat" / stored.kind / f"{stored.digest}.json").unlink(
                    missing_ok=True
                )
            else:
                for name in check.extra:
                    _move(stored.folder / name, target / name)
        return str(target)

    def put_file_aside(self, path: PurePath) -> str:
        """Move a record or a run manifest."""
        target = self._root / QUARANTINE / path.parent / f"{path.stem}-{self._when}.json"
        with writing_to(self._root):
            _move(self._root / path, target)
        return str(target)

    def mended(self, check: Check) -> bool:
        """A folder has no second copy."""
        return False

    def remember(self, check: Check) -> None:
        """Spare runs from hashing again what was hashed now."""
        name = f"stat/{check.stored.kind}/{check.stored.digest}.json"
        if self._store.read_json(name) != check.marks:
            with contextlib.suppress(UserError, StoreError):
                self._store.write_json(name, check.marks)

    def _sorted_out(
        self, paths: Iterable[Path], parse: Callable[[Path], T | str | None]
    ) -> tuple[list[T], list[tuple[PurePath, str]]]:
        """What could be read, and what is wrong with the rest."""
        good: list[T] = []
        bad: list[tuple[PurePath, str]] = []
        for path in paths:
            found = parse(path)
            if isinstance(found, str):
                bad.append((path.relative_to(self._root), found))
            elif found is not None:
                good.append(found)
        return good, bad


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)
