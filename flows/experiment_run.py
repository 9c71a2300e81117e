"""Running an experiment: its steps one after the other or side by side, its manifest, what it hands over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from alphaquant.config import RouterConfig, RunConfig
from alphaquant.errors import ConfigError
from alphaquant.models.resolve import ModelRef
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.stage import StageResult
from flows.display import current_display
from flows.experiment_dag import Step, experiment
from flows.preflight import check_places, find_model, prepare
from flows.publish import SUMMARY, check_target, copy_artifact, whole_folder, write_summary
from flows.runner import Request, StageCalls, StageRunner
from flows.summary import stage_entries

PAGE, REPORT, TABLE = "experiment.md", "experiment.html", "results.parquet"
SideBySide: TypeAlias = Callable[[Callable[[Step], Any], Sequence[Step]], list[Any]]
"""How steps that do not need each other are done."""


def in_turn(work: Callable[[Step], Any], steps: Sequence[Step]) -> list[Any]:
    """One after the other."""
    return [work(step) for step in steps]


def prepare_experiment(
    config: RunConfig, store: ArtifactStore, out: Path | None, force: tuple[str, ...] = ()
) -> tuple[Request, dict[str, ModelRef]]:
    """Check everything an experiment was asked for; the request, and rivals' checkpoints by name.

    Raises UserError for the first thing that is wrong.
    """
    check_places(store, out)
    for bits in (config.allocation.target_bits, *config.experiment.front):
        allocation = config.allocation.model_copy(
            update={
                "policy": "budget",
                "target_bits": bits,
                "granularity": config.allocation.granularity or "linear",
            }
        )
        try:
            # an experiment repairs no routers
            planned = {"allocation": allocation, "router": RouterConfig()}
            request = prepare(config.model_copy(update=planned), store, None)
        except ConfigError as error:
            raise ConfigError(f"experiment at {bits:g} bits per weight: {error}") from error
    folder = out or Path("runs") / f"experiment-{request.model.name}"
    check_target(folder)
    rivals = {
        text: find_model(
            config.model_copy(
                update={
                    "model": config.model.model_copy(
                        update={"path": text.rpartition("@")[0], "revision": None}
                    )
                }
            ),
            store,
        )
        for text in config.experiment.rivals
    }
    return replace(request, config=config, out=folder, force=force), rivals


class ExperimentCalls(StageCalls):
    """Calls of one experiment: a stage is called many times, so each result goes by its step's label."""

    def __init__(self, request: Request, run: StageRunner, side_by_side: SideBySide) -> None:
        super().__init__(replace(request, stages=_no_stages), run)
        self._side_by_side = side_by_side
        self._alone = threading.Lock()

    def step(self, step: Step) -> ArtifactRef | None:
        """Run a step, or find its result."""
        current_display().begin(step.label)
        force = step.stage.name in self._request.force
        result = self._run(step.stage, self._request.store, step.inputs, force=force)
        return self._keep(replace(result, name=step.label))

    def _keep(self, result: StageResult) -> ArtifactRef | None:
        with self._alone:  # steps may end at the same moment
            return super()._keep(result)

    def all(self, steps: Sequence[Step]) -> list[ArtifactRef | None]:
        """Run steps that do not need each other."""
        return self._side_by_side(self.step, steps)


def _no_stages(*_: Any) -> Any:
    """An experiment's steps are no stages of a run, so there is nothing to plan ahead."""


def run_experiment(
    request: Request,
    rivals: dict[str, ModelRef],
    runner: StageRunner,
    side_by_side: SideBySide = in_turn,
) -> dict[str, Any]:
    """Do the experiment and hand it over; returns the summary.

    The manifest is written step by step, and also when the experiment fails or is interrupted.
    """
    calls = ExperimentCalls(request, runner, side_by_side)

    def work() -> dict[str, Any]:
        with reporting_to(current_display()):
            found = experiment(request.config, request.model, calls, rivals)
        return _hand_over(request, calls.results, found)

    return calls.to_the_end(work)


def _hand_over(
    request: Request, results: Sequence[StageResult], conclusion: ArtifactRef
) -> dict[str, Any]:
    """Write page, figures, tables and `summary.json`; returns the summary."""
    import pandas as pd

    assert request.out is not None
    out, source = request.out, request.store.path(conclusion)
    plans = pd.read_parquet(source / TABLE)
    arms = plans[~plans["front"]].groupby("arm", sort=False)
    means = arms[["bits_per_weight", "kl", "perplexity"]].mean().sort_values("kl")
    summary = {
        "run_id": request.run_id,
        "status": "completed",
        "model": request.model.name,
        "experiment": "alpha",
        "verdict": json.loads((source / "verdict.json").read_text(encoding="utf-8")),
        "arms": [{"arm": name, **row} for name, row in means.to_dict("index").items()],
        "stages": stage_entries(request.store, results),
        "table": str(out / TABLE),
        "page": str(out / PAGE),
        "report": str(out / REPORT),
    }
    with whole_folder(out) as draft:
        copy_artifact(source, draft)
        write_summary(draft / SUMMARY, summary)
    return summary
