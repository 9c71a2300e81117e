"""The Prefect flow `experiment`: what alpha is worth on a model, every arm a cached stage per calibration seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from alphaquant.config import RunConfig
from alphaquant.models.resolve import ModelRef
from alphaquant.progress import reporting_to
from alphaquant.store.runs import new_run_id
from flows.dag import StageName
from flows.dispatch import run_on_pool
from flows.display import PlainDisplay
from flows.experiment_dag import Step
from flows.experiment_run import in_turn, prepare_experiment, run_experiment
from flows.pipeline import on_server
from flows.preflight import open_store
from flows.runner import Request, run_here
from flows.stage_task import run_as_task
from flows.sweep import AT_ONCE
from flows.ui import show_failure, show_sweep
from flows.watching import giving_up

_DEFAULT = RunConfig()
_prepared: ContextVar[tuple[Request, dict[str, ModelRef]] | None] = ContextVar(
    "prepared_experiment", default=None
)


@flow(
    name="experiment",
    flow_run_name=new_run_id,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]
)
def experiment_flow(
    config: RunConfig = _DEFAULT,
    force: list[StageName] = [],  # noqa: B006
    store: str = "",
    out: str = "",
) -> dict[str, Any]:
    """Spend the same bits in many ways and say whether alpha helps on this model, and which way.

    With execution.where=pool arms are measured at once, as jobs of the GPU pool.

    Args:
        config: What all arms have in common; the section experiment says how many there are.
        force: Stages to run even when the store has their result.
        store: Folder or URL of the artifact store; empty means ALPHAQUANT_STORE or artifacts/.
        out: Folder for the page and the tables; empty means runs/experiment-MODEL.
    """
    logging.getLogger("alphaquant").setLevel(logging.INFO)
    try:
        request, rivals = _prepared.get() or prepare_experiment(
            config, open_store(store), Path(out) if out else None, tuple(force)
        )
        request = replace(request, run_id=str(flow_run.name))
        pooled = request.config.execution.where == "pool"
        summary = run_experiment(
            request,
            rivals,
            partial(run_as_task, runner=run_on_pool if pooled else run_here),
            _at_once if pooled else in_turn,
        )
    except Exception as error:  # noqa: BLE001
        return show_failure(error)  # type: ignore[no-any-return]
    show_sweep(summary)
    return summary


def run_prepared_experiment(request: Request, rivals: dict[str, ModelRef]) -> dict[str, Any]:
    """Run the flow for a caller that has checked its request already. Raises what `on_server` does."""
    token = _prepared.set((request, rivals))
    try:
        with on_server():
            return experiment_flow(
                request.config,
                list(request.force),  # type: ignore[arg-type]
                request.store.location,
                str(request.out) if request.out else "",
            )
    finally:
        _prepared.reset(token)


def _at_once(work: Callable[[Step], Any], steps: Sequence[Step]) -> list[Any]:
    futures: list[PrefectFuture[Any]] = [
        task(name="arm", task_run_name=step.label, cache_policy=NO_CACHE, persist_result=False)(
            _in_its_own_words(work, step)
        ).submit()
        for step in steps
    ]
    with giving_up():
        return [future.result() for future in futures]


def _in_its_own_words(work: Callable[[Step], Any], step: Step) -> Callable[[], Any]:
    """Do a step among others: each line says whose it is."""

    def one() -> Any:
        with reporting_to(PlainDisplay(prefix=f"[{step.label}] ")):
            return work(step)

    return one
