"""Find damage in a store, put it aside, and say what will run again because of it.

Nothing is deleted: damaged artifacts, torn records and torn run manifests move into `quarantine/`, so that
runs miss them and make them again. Runs may be at work meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, Protocol, TypeAlias

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import KeyRecord
from alphaquant.store.remote import RemoteStore
from alphaquant.upkeep.bucket_site import BucketSite
from alphaquant.upkeep.consequences import Consequences, Name, computation_of, name_of
from alphaquant.upkeep.folder_site import FolderSite
from alphaquant.upkeep.soundness import Check

Torn: TypeAlias = list[tuple[PurePath, str]]
"""Files, by their path in the store, and what is wrong with them."""


class Site(Protocol):
    """Where a store lies: a folder or a bucket."""

    def artifacts(self, *, fast: bool) -> list[Check]:
        """Every artifact, looked at."""

    def records(self) -> tuple[list[KeyRecord], Torn]:
        """Every key record."""

    def manifests(self) -> tuple[list[dict[str, Any]], Torn]:
        """Every run manifest."""

    def left_over(self) -> dict[str, int]:
        """Harmless remains that gc removes, by what they are."""

    def in_the_way(self) -> Torn:
        """What lies where runs write files."""

    def has(self, ref: ArtifactRef) -> bool:
        """Whether there is anything of an artifact."""

    def put_aside(self, check: Check) -> str | None:
        """Move a damaged artifact, or what does not belong to it; None when a run replaced it meanwhile."""

    def put_file_aside(self, path: PurePath) -> str:
        """Move a record or a run manifest."""

    def mended(self, check: Check) -> bool:
        """Whether an artifact that was put aside is there again already, from another copy."""

    def remember(self, check: Check) -> None:
        """Note that an artifact was hashed and is sound."""


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
    mended: bool = False
    """Whether a sound copy took its place at once."""


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

    `fast` hashes only files that changed since they were last hashed, and none in a bucket. Raises UserError when
    there is no store, or when damage is found in one that may not be written, StoreError when a bucket does not
    answer.
    """
    site: Site = BucketSite(store) if isinstance(store, RemoteStore) else FolderSite(store)
    checks = site.artifacts(fast=fast)
    records, torn = site.records()
    manifests, torn_runs = site.manifests()
    report = Report(
        store=store.location,
        artifacts=len(checks),
        bytes=sum(mark[0] for check in checks for mark in check.marks.values()),
        records=len(records) + len(torn),
        runs=len(manifests) + len(torn_runs),
        left_over=site.left_over(),
    )
    after = Consequences(checks, records, manifests)
    seen = {name_of(check.stored.ref) for check in checks}
    for check in checks:
        if check.problems or check.extra:
            report.findings += _harm(check, after, site, repair=repair)
        else:
            if repair and not fast:
                site.remember(check)
            report.findings += _missing_parts(site, check, seen, after)
    move: Callable[[PurePath], str | None] = site.put_file_aside if repair else lambda path: None
    for path, problem in torn:
        reruns, runs = [computation_of(path.parent.name)], after.runs_of_key(path.stem)
        what = f"record {path.parent.name}/{path.stem}"
        report.findings.append(Finding(what, [problem], reruns, runs, move(path)))
    for path, problem in torn_runs:
        report.findings.append(
            Finding(f"manifest of run {path.stem}", [problem], moved_to=move(path))
        )
    for path, problem in site.in_the_way():
        report.findings.append(Finding(f"file {path}", [problem], moved_to=move(path)))
    return report


def _harm(check: Check, after: Consequences, site: Site, *, repair: bool) -> list[Finding]:
    moved = site.put_aside(check) if repair else None
    if repair and moved is None:
        return []
    mended = bool(check.problems) and repair and site.mended(check)
    name = name_of(check.stored.ref)
    problems = check.problems + [f"{extra} does not belong to it" for extra in check.extra]
    reruns = after.reruns(name) if check.problems and not mended else []
    what = f"artifact {check.stored}"
    return [Finding(what, problems, reruns, after.runs(name), moved, mended)]


def _missing_parts(site: Site, check: Check, seen: set[Name], after: Consequences) -> list[Finding]:
    """An artifact whose parts are not in the store; parts that are damaged speak for themselves."""
    missing = {
        name: child
        for name, child in check.children.items()
        if name_of(child) not in seen and not site.has(child)
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
