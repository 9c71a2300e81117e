"""A stage as a Prefect task: seen, timed and failed in the UI, computed and cached by our own store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from alphaquant.errors import AlphaQuantError
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.stage import Stage, StageResult
from flows.runner import StageRunner
from flows.ui_failure import note_stage
from flows.ui_progress import progress_in_ui


def run_as_task(
    stage: Stage,
    store: ArtifactStore,
    inputs: dict[str, Any],
    *,
    force: bool,
    runner: StageRunner,
) -> StageResult:
    """Run a stage as a Prefect task of its name; a hit ends in the state Cached with its reason."""
    results: list[StageResult] = []
    refusals: list[AlphaQuantError] = []

    def work(artifacts: list[ArtifactRef]) -> ArtifactRef | State[Any] | None:
        try:
            with progress_in_ui(stage.name):
                result = runner(stage, store, inputs, force=force)
        except Exception as error:
            note_stage(error, stage.name)
            if not isinstance(error, AlphaQuantError):
                raise
            # an error whose message says it all needs no traceback in the task's log
            refusals.append(error)
            return Failed(message=str(error), data=error)
        results.append(result)
        if result.state == "ran":
            return result.ref
        return Completed(name=result.state.title(), message=result.reason, data=result.ref)

    # Prefect draws its graph by the values that a task gets from others: artifacts and nothing else
    run_task = task(name=stage.name, cache_policy=NO_CACHE, persist_result=False)(work)
    run_task(list(_artifacts(inputs)))
    if refusals:
        raise refusals[0]
    return results[0]


def _artifacts(value: Any) -> Iterator[ArtifactRef]:
    if isinstance(value, ArtifactRef):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _artifacts(part)
