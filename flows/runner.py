"""A run: call the stages in order, hand the products over, and leave a manifest whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from alphaquant.config import RunConfig
from alphaquant.errors import StoreError, UserError
from alphaquant.models.resolve import ModelRef
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import environment
from alphaquant.store.runs import new_run_id, save_run
from alphaquant.store.stage import Stage, StageResult, run_stage
from flows.dag import Products, Stages, pipeline
from flows.display import current_display
from flows.publish import publish_run
from flows.summary import block_counts, stage_entries


class StageRunner(Protocol):
    """Runs one stage: `run_stage` itself, or `run_stage` inside a Prefect task."""

    def __call__(
        self, stage: Stage, store: ArtifactStore, inputs: dict[str, Any], *, force: bool
    ) -> StageResult:
        """Return what happened."""


@dataclass(frozen=True)
class Request:
    """What a run was asked for."""

    config: RunConfig
    model: ModelRef
    store: ArtifactStore
    out: Path | None = None
    """Where the products go; None for `runs/<model>-<bits>`."""
    force: tuple[str, ...] = ()
    stages: Stages = pipeline
    run_id: str = field(default_factory=new_run_id)


class StageCalls:
    """Calls stages one after the other and keeps what happened to each."""

    def __init__(self, request: Request, run: StageRunner) -> None:
        self._request = request
        self._run = run
        self.results: list[StageResult] = []

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | None:
        """Run a stage, or find its result."""
        display = current_display()
        display.begin(stage.name)
        force = stage.name in self._request.force
        result = self._run(stage, self._request.store, inputs, force=force)
        self.results.append(result)
        display.end(result)
        return result.ref

    def skip(self, stage: Stage, reason: str) -> None:
        """Note that a stage does not apply."""
        result = StageResult(stage.name, "skipped", reason, 0.0, "", None)
        self.results.append(result)
        current_display().end(result)


HandOver: TypeAlias = Callable[[Request, Sequence[StageResult], Products], dict[str, Any]]


def run(
    request: Request, stage_runner: StageRunner = run_stage, hand_over: HandOver = publish_run
) -> dict[str, Any]:
    """Do the run, give its products to `hand_over` and return that one's summary. The manifest is written also when it fails or is interrupted."""
    calls = StageCalls(request, stage_runner)
    started = datetime.now(UTC)
    ending: dict[str, Any] = {"status": "failed"}
    try:
        products = request.stages(request.config, request.model, calls)
        ending = hand_over(request, calls.results, products)
    except KeyboardInterrupt:
        ending = {"status": "interrupted"}
        raise
    except Exception as error:
        ending["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        if calls.results:
            with contextlib.suppress(StoreError, UserError):
                save_run(request.store, _manifest(request, calls.results, started, ending))
    return ending


def _manifest(
    request: Request, results: list[StageResult], started: datetime, ending: dict[str, Any]
) -> dict[str, Any]:
    manifest = {
        "run_id": request.run_id,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": request.config.model_dump(mode="json"),
        "model": request.model.name,
        "model_ref": request.model.model_dump(mode="json"),
        "force": list(request.force),
        "stages": stage_entries(request.store, results),
        "refs": {result.name: result.ref.model_dump() for result in results if result.ref},
        "blocks": block_counts(results),
        "environment": environment(),
    }
    return manifest | ending
