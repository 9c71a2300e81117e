"""Stages that a run need not compute although their artifact was removed: nothing that runs reads it.

So a cached evaluation can be shown after the blocks it once came from were collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.planning import stages_in
from alphaquant.store.records import key_of
from alphaquant.store.stage import Stage, StageResult, lookup
from flows.planned import planned_stages

if TYPE_CHECKING:
    from flows.runner import Request


class Spared:
    """Told by a plan made before the run, and corrected when the run turns out otherwise."""

    def __init__(self, request: Request) -> None:
        self._store = request.store
        self._planned = {
            stage.name: stage
            for stage in planned_stages(request)
            if stage.removed and stage.state == "cached"
        }
        self._aside: dict[str, tuple[Stage, Mapping[str, Any]]] = {}

    def take(self, stage: Stage, inputs: Mapping[str, Any]) -> StageResult | None:
        """The known result of a stage that is spared; None for one that must be called."""
        planned = self._planned.get(stage.name)
        if planned is None or planned.key != key_of(stage.ingredients(inputs)):
            return None
        self._aside[stage.name] = (stage, inputs)
        assert isinstance(planned.out, ArtifactRef)
        return StageResult(
            stage.name,
            "cached",
            planned.reason,
            0.0,
            planned.key,
            planned.out,
            units_cached=planned.units,
        )

    def needed_for(
        self, stage: Stage, inputs: Mapping[str, Any], *, force: bool
    ) -> Iterator[tuple[Stage, Mapping[str, Any]]]:
        """Spared stages that must be called before this one after all, with their inputs, in order.

        A stage planned as cached runs when a stage before it came out otherwise than the last time.
        """
        reads = [name for name in self._aside if name in stages_in(inputs)]
        if not reads or not (force or lookup(stage, self._store, inputs, why="not done").miss):
            return
        for name in reads:
            earlier, given = self._aside.pop(name)
            yield from self.needed_for(earlier, given, force=True)
            yield earlier, given
