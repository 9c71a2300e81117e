"""What follows from losing an artifact: which stage or block is computed again, and which runs used it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.records import KeyRecord
from alphaquant.upkeep.soundness import Check, refs_of

Name: TypeAlias = tuple[str, str]
"""Kind and digest of an artifact."""
BLOCK = "-block"
"""How the kinds of artifacts end that are parts of a stage's."""


def name_of(ref: ArtifactRef) -> Name:
    """An artifact without its size."""
    return ref.kind, ref.digest


class Consequences:
    """Who made each artifact, what it is part of, and which runs refer to it."""

    def __init__(
        self,
        checks: Iterable[Check],
        records: Iterable[KeyRecord],
        manifests: Iterable[dict[str, Any]],
    ) -> None:
        self._makers: dict[Name, list[KeyRecord]] = defaultdict(list)
        self._wholes: dict[Name, list[Name]] = defaultdict(list)
        self._runs: dict[Name, set[str]] = defaultdict(set)
        self._runs_of_key: dict[str, set[str]] = defaultdict(set)
        for record in records:
            if record.ref:
                self._makers[name_of(record.ref)].append(record)
        for check in checks:
            for child in check.children.values():
                self._wholes[name_of(child)].append(name_of(check.stored.ref))
        for manifest in manifests:
            for ref in refs_of(manifest).values():
                self._runs[name_of(ref)].add(manifest["run_id"])
            for stage in manifest.get("stages", []):
                self._runs_of_key[stage.get("key", "")].add(manifest["run_id"])

    def reruns(self, name: Name) -> list[str]:
        """What is computed when somebody asks for the artifact again, in words."""
        return sorted({_computation(record) for record in self._makers[name]})

    def runs(self, name: Name) -> list[str]:
        """Runs that made or used the artifact or something it is part of, newest first."""
        found: set[str] = set()
        todo = [name]
        while todo:
            one = todo.pop()
            found |= self._runs[one]
            todo += self._wholes[one]
        return sorted(found, reverse=True)

    def runs_of_key(self, key: str) -> list[str]:
        """Runs that looked up this key, newest first."""
        return sorted(self._runs_of_key[key], reverse=True)


def _computation(record: KeyRecord) -> str:
    if not record.stage.endswith(BLOCK):
        return record.stage
    index = record.ingredients.get("inputs", {}).get("index", "?")
    return f"block {index} of {record.stage.removesuffix(BLOCK)}"


def computation_of(stage: str) -> str:
    """What a lost record of a stage makes run again."""
    return f"a block of {stage.removesuffix(BLOCK)}" if stage.endswith(BLOCK) else stage
