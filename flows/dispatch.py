"""Stages as jobs of a GPU pool: looked up first, dispatched once, taken from the store when they are done.

Prefect brings the job to a worker and tells when it ended; what came out is read from the store, which also
answers when the server does not.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from alphaquant.errors import AlphaQuantError, ConfigError, StoreError
from alphaquant.progress import reporter
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Lookup, Stage, StageResult, lookup, run_stage
from flows.jobs import read_failure, write_job
from flows.runner import run_here
from flows.watching import (
    AWAY,
    JobFailed,
    asking,
    cancelled_with_us,
    deployment_of,
    go_on,
    wait_for,
)

_CRASHES = 3
"""Times that a job whose process or machine died is sent to another worker; blocks are kept."""
_turn = threading.Lock()
"""Runs of one process take turns at stages that are computed in it."""


def check_pool(pool: str) -> None:
    """Raise ConfigError unless a server is there and knows the deployment that takes the jobs."""
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "execution.where=pool needs a Prefect server that workers share. Start one with `alphaquant "
            "server` and set PREFECT_API_URL to the address it prints, or use execution.where=here."
        )
    try:
        with asking() as client:
            client.read_deployment_by_name(deployment_of(pool))
    except ObjectNotFound as error:
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} has no deployment {deployment_of(pool)!r}. "
            "`alphaquant server` makes it, and so does `prefect deploy --all` in the project's folder."
        ) from error
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} wants a password: set PREFECT_API_AUTH_STRING=user:"
            "password as it was set for the server."
        ) from error
    except AWAY as error:
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} does not answer ({type(error).__name__}). "
            "Check PREFECT_API_URL and that the server runs."
        ) from error


def run_on_pool(
    stage: Stage, store: ArtifactStore, inputs: dict[str, Any], *, force: bool
) -> StageResult:
    """Like `run_stage`, but a GPU stage that must be computed becomes a job of the GPU pool.

    Runs that want the same stage at once send one job: the others wait here, not on a GPU.
    """
    found = lookup(stage, store, inputs)
    if found.miss is None and not force:
        return run_stage(stage, store, inputs)
    if not stage.gpu:
        with _turn:
            go_on()
            return run_here(stage, store, inputs, force=force)
    with store.locked(f"dispatch-{stage.name}-{found.key}", stage.name):
        go_on()
        if not force:
            found = lookup(stage, store, inputs, why=found.miss)
            if found.miss is None:
                return run_stage(stage, store, inputs)
        return _dispatch(stage, store, inputs, found, force=force)


def _dispatch(
    stage: Stage, store: ArtifactStore, inputs: dict[str, Any], found: Lookup, *, force: bool
) -> StageResult:
    started = time.perf_counter()
    key = write_job(store, stage, inputs)
    pool = inputs["execution"].pool
    for tries_left in reversed(range(_CRASHES)):
        job = cast(
            FlowRun,
            run_deployment(
                deployment_of(pool),
                parameters={
                    "stage": stage.name,
                    "key": key,
                    "store": store.location,
                    "force": force,
                },
                timeout=0,
                flow_run_name=f"{stage.name}-{key[:8]}",
            ),
        )
        reporter().note(f"{stage.name}: sent to the pool {pool} as {job.name}")
        with cancelled_with_us(job.id):
            job = wait_for(job, pool, stage.name, partial(_is_done, stage, store, inputs))
        if job.state is None or job.state.type != StateType.CRASHED or not tries_left:
            break
        if _is_done(stage, store, inputs, job.id):
            break  # it crashed behind its work, such as one that its killed worker no longer listens to
        reporter().note(f"{stage.name}: {job.name} crashed ({job.state.message}); sending it again")
    return _result(stage, store, inputs, found, job, time.perf_counter() - started, force=force)


def _is_done(stage: Stage, store: ArtifactStore, inputs: dict[str, Any], job: UUID) -> bool:
    found = lookup(stage, store, inputs, why="not done")
    place = found.record.place if found.record and found.miss is None else None
    return place is not None and place.job == str(job)


def _result(
    stage: Stage,
    store: ArtifactStore,
    inputs: dict[str, Any],
    before: Lookup,
    job: FlowRun,
    seconds: float,
    *,
    force: bool,
) -> StageResult:
    now = lookup(stage, store, inputs, why="not done")
    record = now.record
    if now.miss is not None or record is None:
        raise _failure(stage, store, now.key, job)
    hit = run_stage(stage, store, inputs)
    if record.place is None or record.place.job != str(job.id):
        if force:
            raise _failure(stage, store, now.key, job)
        return hit
    return replace(
        hit,
        state="skipped" if record.skipped else "ran",
        reason=record.skipped or ("forced" if force else str(before.miss)),
        seconds=seconds,
        units_ran=record.units_ran,
        units_cached=record.units - record.units_ran,
    )


def _failure(stage: Stage, store: ArtifactStore, key: str, job: FlowRun) -> AlphaQuantError:
    """What went wrong on the worker; the user's mistakes keep their type, and so their exit status."""
    if error := read_failure(store, stage.name, key, str(job.id)):
        return error
    said = (job.state.message if job.state else None) or "it ended without a message"
    said = said.removeprefix("The run failed: ").rstrip(".")
    if job.state and job.state.is_completed():
        return StoreError(
            f"the worker finished {job.name}, but the store {store.location} does not hold its result. Run "
            "and worker need one store: set ALPHAQUANT_STORE to the same folder or URL on both."
        )
    state = job.state.name if job.state else "unknown"
    return JobFailed(
        f"stage {stage.name} ended as {state} on a worker: {said}. Its log is on the page of the flow run "
        f"{job.name}. Finished blocks are kept: the same command goes on behind them."
    )
