"""A run: call the stages in order, hand the products over, and leave a manifest whatever happens."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from alphaquant.config import RunConfig
from alphaquant.errors import StoreError, UserError
from alphaquant.models.resolve import ModelRef
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import environment
from alphaquant.store.runs import new_run_id, save_run
from alphaquant.store.stage import Stage, StageResult, lookup, run_stage
from flows.beside import alpha_beside
from flows.dag import Products, Stages, pipeline
from flows.devices import claim_device
from flows.display import current_display
from flows.publish import publish_run
from flows.spared import Spared
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
    tags: tuple[str, ...] = ()
    """Names the run can be kept by."""
    run_id: str = field(default_factory=new_run_id)


class StageCalls:
    """Calls stages one after the other, keeps what happened to each, and writes it down as it goes."""

    def __init__(self, request: Request, run: StageRunner) -> None:
        self._request = request
        self._run = run
        self._spared = Spared(request)
        self._started = datetime.now(UTC)
        self._at_work: str | None = None
        self.results: list[StageResult] = []

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | None:
        """Run a stage, or find its result."""
        force = stage.name in self._request.force
        if spared := self._spared.take(stage, inputs):
            return self._keep(spared)
        for earlier, given in self._spared.needed_for(stage, inputs, force=force):
            known = lookup(earlier, self._request.store, given, why="not done").record
            if self._call(earlier, given, force=False) != (known and known.ref):
                raise StoreError(
                    f"{earlier.name} was removed, and came out otherwise than before when it was needed again. "
                    "Give the same command again: it goes on with the new result."
                )
        return self._call(stage, inputs, force=force)

    def _call(self, stage: Stage, inputs: Mapping[str, Any], *, force: bool) -> ArtifactRef | None:
        current_display().begin(stage.name)
        self._at_work = stage.name
        return self._keep(self._run(stage, self._request.store, dict(inputs), force=force))

    def _keep(self, result: StageResult) -> ArtifactRef | None:
        """Note what happened to a stage, in place of an earlier word on it."""
        self._at_work = None
        names = [known.name for known in self.results]
        at = names.index(result.name) if result.name in names else len(names)
        self.results[at : at + 1] = [result]
        self.note({"status": "running"})
        current_display().end(result)
        return result.ref

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        """Note that a stage does not apply."""
        result = StageResult(stage.name, "skipped", reason, 0.0, "", None)
        self.results.append(result)
        current_display().end(result)

    def to_the_end(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do `work`, which makes the calls, and return what it does: the summary. Writes down how it ended."""
        ending: dict[str, Any] = {"status": "interrupted"}
        try:
            ending = work()
        except Exception as error:
            ending = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            self.note(ending)
        return ending

    def note(self, ending: dict[str, Any]) -> None:
        """Write the manifest: what the run did so far, and how it ended if it did."""
        if not self.results:
            return
        request = self._request
        manifest = {
            "run_id": request.run_id,
            "started": self._started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "config": request.config.model_dump(mode="json"),
            "model": request.model.name,
            "model_ref": request.model.model_dump(mode="json"),
            "force": list(request.force),
            "tags": list(request.tags),
            "stages": stage_entries(request.store, self.results),
            "refs": {result.name: result.ref.model_dump() for result in self.results if result.ref},
            "blocks": block_counts(self.results),
            "stage_at_work": self._at_work,
            "environment": environment(),
        }
        with contextlib.suppress(StoreError, UserError):
            save_run(request.store, manifest | ending)


HandOver: TypeAlias = Callable[[Request, Sequence[StageResult], Products], dict[str, Any]]
run_here = partial(run_stage, claim=claim_device)


def run(
    request: Request, stage_runner: StageRunner = run_here, hand_over: HandOver = publish_run
) -> dict[str, Any]:
    """Do the run, give its products to `hand_over` and return that one's summary.

    The manifest is written stage by stage, and also when the run fails or is interrupted.
    """
    calls = StageCalls(request, stage_runner)

    def work() -> dict[str, Any]:
        with reporting_to(current_display()), alpha_beside(request):
            products = request.stages(request.config, request.model, calls)
        return hand_over(request, calls.results, products)

    return calls.to_the_end(work)
