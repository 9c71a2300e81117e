"""What gc says of a store, and how long it keeps what explains results that are gone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from alphaquant.errors import StoreError

HOUR, DAY = 3600.0, 86400.0
RECORDS_PER_STAGE = 200
RECORD_DAYS = 90.0
LOG_DAYS = 30.0


@dataclass
class Kind:
    """Artifacts of one kind: how many go and stay, and their bytes."""

    kind: str
    removed: int = 0
    freed: int = 0
    kept: int = 0
    kept_bytes: int = 0


@dataclass
class Cache:
    """What goes and what stays of this machine's copy of a bucket."""

    folder: str
    removed: int
    freed: int
    kept: int
    kept_bytes: int


@dataclass
class Report:
    """What goes and what stays; what went, when `deleted`."""

    store: str
    deleted: bool
    kinds: list[Kind]
    runs_kept: list[str]
    runs_removed: list[str]
    records_removed: int
    quarantined: int
    """Things that fsck has put aside, and that stay unless they were asked for."""
    left_over: dict[str, int] = field(default_factory=dict)
    cache: Cache | None = None
    """Of a store in a bucket only."""

    @property
    def removed(self) -> int:
        """How many artifacts go."""
        return sum(kind.removed for kind in self.kinds)

    @property
    def freed(self) -> int:
        """Bytes that nothing else holds: files with a hard link elsewhere, such as products, do not count."""
        return sum(kind.freed for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """What `alphaquant gc --json` prints."""
        return {**asdict(self), "removed": self.removed, "freed": self.freed}


def unreadable(manifest: str, problem: str) -> StoreError:
    """What stops gc: it is not known what a run needs."""
    return StoreError(
        f"the run manifest {manifest} is {problem}, so what that run needs is not known. Nothing was "
        "removed; `alphaquant fsck` puts it aside."
    )
