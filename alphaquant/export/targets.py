"""Which linears a config means: exact names, and one folder where the experts of a block agree.

What is written from it is anchored and disjoint, so consumers that take the first match and consumers that sort
patterns see the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from alphaquant.models.linear import LinearSpec

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Experts:
    """All routed experts of a block, as far as `projections` go."""

    folder: str
    projections: tuple[str, ...]
    whole: bool
    """Whether these are all projections that experts have."""

    @property
    def pattern(self) -> str:
        """A regular expression that matches the linears' whole names."""
        leaves = "|".join(re.escape(leaf) for leaf in self.projections)
        return rf"^{re.escape(self.folder)}\.\d+\.({leaves})$"

    @property
    def pattern_with_folder(self) -> str:
        """The same, and where it is all of them also the folder: the name of the kernel they are fused into."""
        if not self.whole:
            return self.pattern
        leaves = "|".join(re.escape(leaf) for leaf in self.projections)
        return rf"^{re.escape(self.folder)}(\.\d+\.({leaves}))?$"


@dataclass
class Targets(Generic[Kind]):
    """The linears of one kind."""

    kind: Kind
    names: list[str] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)


def targets_by_kind(specs: Sequence[LinearSpec], kind: Mapping[str, Kind]) -> list[Targets[Kind]]:
    """The linears of every kind, in the order of `specs`; `kind` gives the one of each linear by name."""
    found: dict[Kind, Targets[Kind]] = {}
    folders = _folders(specs)
    in_folder: set[str] = set()
    for folder, projections in folders.items():
        agreed: dict[Kind, list[str]] = defaultdict(list)
        for leaf, names in projections.items():
            if len(kinds := {kind[name] for name in names}) == 1:
                agreed[kinds.pop()].append(leaf)
                in_folder.update(names)
        for key, leaves in agreed.items():
            experts = Experts(folder, tuple(leaves), len(leaves) == len(projections))
            found.setdefault(key, Targets(key)).experts.append(experts)
    for spec in specs:
        target = found.setdefault(kind[spec.name], Targets(kind[spec.name]))
        if spec.name not in in_folder:
            target.names.append(spec.name)
    return list(found.values())


def _folders(specs: Sequence[LinearSpec]) -> dict[str, dict[str, list[str]]]:
    """Names of routed experts' linears by their folder and projection."""
    found: dict[str, dict[str, list[str]]] = {}
    for spec in specs:
        if spec.expert is not None:
            folder, _, leaf = spec.name.rpartition(f".{spec.expert}.")
            found.setdefault(folder, {}).setdefault(leaf, []).append(spec.name)
    return found
