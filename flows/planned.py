"""The pipeline walked without computing anything: what a run would do, and which stages follow which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from alphaquant.config import RunConfig
from alphaquant.models.resolve import ModelRef
from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.planning import Pending, PlannedStage, pending_in, plan_stage, spare_unread
from alphaquant.store.stage import Stage
from flows.dag import Stages, pipeline

if TYPE_CHECKING:
    from flows.runner import Request

UNPUBLISHED = ("calibration", "generate", "balance", "baseline", "rotate")
"""Stages whose artifact is for other stages alone, tokens, hidden states or a whole model: none of it is handed over."""
_ANY_MODEL = ModelRef(path="", name="", model_type="", digest="")


def planned_stages(request: Request) -> list[PlannedStage]:
    """What would happen to each stage, in order.

    A stage is cached also when its artifact is gone, as long as nothing that would run reads it.
    """
    planner = _Planner(request)
    request.stages(request.config, request.model, planner)
    return spare_unread(planner.planned, UNPUBLISHED)


def from_here_on(
    config: RunConfig, first: Iterable[str], stages: Stages = pipeline
) -> tuple[str, ...]:
    """The stages `first` and every stage that is given what they make, directly or through others."""
    reached = set(first)
    if not reached:
        return ()  # walking would read the files that a config names
    recorder = _Recorder()
    stages(config, _ANY_MODEL, recorder)
    for name, given in recorder.given.items():
        if given & reached:  # in the order of the calls: inputs come before users
            reached.add(name)
    return tuple(name for name in recorder.given if name in reached)


class _Planner:
    def __init__(self, request: Request) -> None:
        self._request = request
        self.planned: list[PlannedStage] = []

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | Pending | None:
        force = stage.name in self._request.force
        found = plan_stage(stage, self._request.store, inputs, force=force)
        self.planned.append(found)
        return found.out

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        self.planned.append(PlannedStage(stage.name, "skipped", reason, None, None))


class _Recorder:
    """Notes which stages' artifacts each stage is given; skipped stages stand in line too."""

    def __init__(self) -> None:
        self.given: dict[str, set[str]] = {}

    def __call__(self, stage: Stage, **inputs: Any) -> Pending:
        self.given[stage.name] = pending_in(inputs)
        return Pending(stage.name)

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> Pending:
        return self(stage, **inputs)
