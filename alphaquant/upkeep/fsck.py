"""Find damage in a store, put it aside, and say what will run again because of it.

Nothing is deleted: damaged artifacts, torn records and torn run manifests move into `quarantine/`, so that
runs miss them and make them again. Runs may be at work meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from alphaquant.errors import StoreError, UserError
from alphaquant.progress import track
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.files import writing_to
from alphaquant.store.usage import removing
from alphaquant.upkeep.consequences import Consequences, Name, computation_of, name_of
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


@dataclass
class Finding:
    """Something that is wrong, and what follows from it."""

    what: str
    problems: list[str]
    reruns: list[str] = field(default_factory=list)
    """What is computed again when it is next asked for."""
    runs: list[str] = field(default_factory=list)
    """Runs that made or used it, newest first."""
    moved_to: str | None = None


@dataclass
class Report:
    """What a check of a whole store looked at and found."""

    store: str
    artifacts: int
    bytes: int
    records: int
    runs: int
    left_over: dict[str, int]
    """Harmless remains that gc removes, by what they are."""
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """What `alphaquant fsck --json` prints."""
        return {"sound": not self.findings, **asdict(self)}


def fsck(store: ArtifactStore, *, fast: bool = False, repair: bool = True) -> Report:
    """Check every artifact, record and run manifest; `repair` moves what is damaged into quarantine.

    `fast` hashes only files that changed since they were last hashed. Raises UserError when there is no
    store, or when damage is found in one that may not be written.
    """
    root = root_of(store, "fsck")
    checks = check_artifacts(store, artifacts(root), fast=fast)
    records, torn = _sorted_out(
        track(files := key_files(root), "records", len(files)), lambda p: record_problem(store, p)
    )
    manifests, torn_runs = _sorted_out(run_files(root), manifest_problem)
    report = Report(
        store=store.location,
        artifacts=len(checks),
        bytes=sum(mark[0] for check in checks for mark in check.marks.values()),
        records=len(records) + len(torn),
        runs=len(manifests) + len(torn_runs),
        left_over={what: len(paths) for what, paths in left_over(root).items() if paths},
    )
    after = Consequences(checks, records, manifests)
    seen = {name_of(check.stored.ref) for check in checks}
    aside = _Aside(root) if repair else None
    for check in checks:
        if check.problems or check.extra:
            report.findings += _harm(check, after, aside)
        else:
            if repair and not fast:
                _remember(store, check)
            report.findings += _missing_parts(store, check, seen, after)
    for path, problem in torn:
        moved = aside.record(path) if aside else None
        reruns, runs = [computation_of(path.parent.name)], after.runs_of_key(path.stem)
        what = f"record {path.parent.name}/{path.stem}"
        report.findings.append(Finding(what, [problem], reruns, runs, moved))
    for path, problem in torn_runs:
        moved = aside.record(path) if aside else None
        report.findings.append(Finding(f"manifest of run {path.stem}", [problem], moved_to=moved))
    for path in in_the_way(root):
        moved = aside.record(path) if aside else None
        what = f"file {path.relative_to(root)}"
        report.findings.append(Finding(what, ["no plain file"], moved_to=moved))
    return report


class _Aside:
    """Moves what is damaged into quarantine, under a name that tells when."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")

    def artifact(self, check: Check) -> str | None:
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

    def record(self, path: Path) -> str:
        """Move a record or a run manifest."""
        place = path.relative_to(self._root)
        target = self._root / QUARANTINE / place.parent / f"{place.stem}-{self._when}.json"
        with writing_to(self._root):
            _move(path, target)
        return str(target)


def _harm(check: Check, after: Consequences, aside: _Aside | None) -> list[Finding]:
    moved = aside.artifact(check) if aside else None
    if aside and moved is None:
        return []
    name = name_of(check.stored.ref)
    problems = check.problems + [f"{extra} does not belong to it" for extra in check.extra]
    reruns = after.reruns(name) if check.problems else []
    return [Finding(f"artifact {check.stored}", problems, reruns, after.runs(name), moved)]


def _missing_parts(
    store: ArtifactStore, check: Check, seen: set[Name], after: Consequences
) -> list[Finding]:
    """An artifact whose parts are not in the store; parts that are damaged speak for themselves."""
    missing = {
        name: child
        for name, child in check.children.items()
        if name_of(child) not in seen and not store.place(child).exists()
    }
    if not missing:
        return []
    whole = name_of(check.stored.ref)
    reruns = {text for child in missing.values() for text in after.reruns(name_of(child))}
    return [
        Finding(
            f"artifact {check.stored}",
            [f"its part {name} ({child}) is missing" for name, child in missing.items()],
            sorted(reruns) or after.reruns(whole),
            after.runs(whole),
        )
    ]


def _sorted_out(
    paths: Iterable[Path], parse: Callable[[Path], T | str | None]
) -> tuple[list[T], list[tuple[Path, str]]]:
    """What could be read, and what is wrong with the rest."""
    good: list[T] = []
    bad: list[tuple[Path, str]] = []
    for path in paths:
        found = parse(path)
        if isinstance(found, str):
            bad.append((path, found))
        elif found is not None:
            good.append(found)
    return good, bad


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _remember(store: ArtifactStore, check: Check) -> None:
    """Spare runs from hashing again what was hashed now."""
    name = f"stat/{check.stored.kind}/{check.stored.digest}.json"
    if store.read_json(name) != check.marks:
        with contextlib.suppress(UserError, StoreError):
            store.write_json(name, check.marks)
