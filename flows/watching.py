"""Waiting for a job of a pool: what becomes of it, how far it is, and what it lacks when nothing happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling

from alphaquant.errors import AlphaQuantError, StoreError
from alphaquant.progress import reporter
from alphaquant.store.lock import given_up


class JobFailed(AlphaQuantError):
    """A dispatched stage failed on its worker."""


AWAY = (httpx.HTTPError, OSError)
"""How a server that does not answer shows."""
_POLL = (0.5, 5.0)
"""Seconds between two looks at a job, at first and at most."""
_INTERVAL = 10.0
"""Seconds between two messages about a job's progress."""
_PATIENCE = 30.0
"""Seconds that a job waits before the user is told what it waits for."""


def deployment_of(pool: str) -> str:
    """Name of the deployment whose runs are jobs of a pool."""
    return f"stage/{pool}"


@contextlib.contextmanager
def asking() -> Iterator[SyncPrefectClient]:
    """A client that says at once that the server is away; by itself it would try again for a minute."""
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    with once, get_client(sync_client=True) as client:
        yield client


@contextlib.contextmanager
def giving_up() -> Iterator[None]:
    """Let waits for jobs in other threads end when this thread is interrupted."""
    given_up.clear()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        given_up.set()
        raise


def go_on() -> None:
    """Raise KeyboardInterrupt when another thread was interrupted: nothing new is begun."""
    if given_up.is_set():
        raise KeyboardInterrupt


def wait_for(job: FlowRun, pool: str, what: str, is_done: Callable[[UUID], bool]) -> FlowRun:
    """Look at a job until it is over, and tell the user what happens to it.

    A server that is away for a while does no harm: `is_done` says whether the store has the job's result.
    """
    pause, away = _POLL[0], False
    told = _Told(what, pool)
    while True:
        if given_up.wait(pause):
            raise KeyboardInterrupt
        pause = min(pause * 1.2, _POLL[1])
        try:
            with asking() as client:
                job = client.read_flow_run(job.id)
                told.look_at(client, job)
            away = False
        except AWAY as error:
            if not away:
                reporter().note(
                    f"{what}: the Prefect server does not answer ({type(error).__name__}); the job "
                    "goes on, looking into the store meanwhile"
                )
            away = True
            with contextlib.suppress(StoreError):  # the network may be away altogether
                if is_done(job.id):
                    return job
        except ObjectNotFound as error:
            if is_done(job.id):
                return job
            raise JobFailed(
                f"the Prefect server knows {job.name} no more: it was deleted, or the server has a new database. "
                "Finished blocks are kept: the same command goes on behind them."
            ) from error
        if job.state and job.state.is_final():
            return job


class _Told:
    """What the user was told of a job: each thing once, its progress every few seconds.

    The server is asked only for what would be said now.
    """

    def __init__(self, what: str, pool: str) -> None:
        self._what = what
        self._pool = pool
        self._since = time.monotonic()
        self._things: set[str] = set()
        self._progress: tuple[float, str] = (0.0, "")

    def look_at(self, client: SyncPrefectClient, job: FlowRun) -> None:
        """Tell what is new of a job."""
        if _waits(job) and time.monotonic() - self._since > _PATIENCE:
            self._once("waits", lambda: _what_is_missing(client, self._pool, job))
        elif job.state and job.state.type == StateType.RUNNING:
            self._once("runs", lambda: f"{self._what}: {job.name} is running")
            self._now_and_then(lambda: _progress_of(client, job))

    def _once(self, thing: str, message: Callable[[], str]) -> None:
        if thing not in self._things:
            reporter().note(message())
            self._things.add(thing)

    def _now_and_then(self, progress: Callable[[], str | None]) -> None:
        when, last = self._progress
        if time.monotonic() - when > _INTERVAL and (said := progress()) and said != last:
            self._progress = (time.monotonic(), said)
            reporter().note(said)


def _progress_of(client: SyncPrefectClient, job: FlowRun) -> str | None:
    """What the job's progress artifact says, such as `quantize: blocks 3 of 16, about 4 min left`."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[job.id]),
            type=ArtifactFilterType(any_=["progress"]),
        ),
        limit=1,
    )
    return found[0].description if found else None


def _waits(job: FlowRun) -> bool:
    return job.state is None or job.state.type in (StateType.SCHEDULED, StateType.PENDING)


def _what_is_missing(client: SyncPrefectClient, pool: str, job: FlowRun) -> str:
    try:
        deployment = client.read_deployment_by_name(deployment_of(pool))
        name = deployment.work_pool_name or pool
        online = [w for w in client.read_workers_for_work_pool(name) if w.status == "ONLINE"]
    except ObjectNotFound:
        return (
            f"{job.name} waits: the server has lost the pool {pool} or its deployment {deployment_of(pool)}. "
            "`alphaquant server` makes both; then interrupt this command and give it again."
        )
    if online:
        return f"{job.name} waits: the {len(online)} workers of the pool {name} are busy"
    return (
        f"{job.name} waits: the pool {name} has no worker. Start one per GPU of a machine that sees the store: "
        f"alphaquant server --join {client.api_url}"
    )


@contextlib.contextmanager
def cancelled_with_us(job: UUID) -> Iterator[None]:
    """A job that nobody waits for any more gives its GPU back; its finished blocks stay."""
    try:
        yield
    except BaseException:
        try:
            with asking() as client:
                client.set_flow_run_state(job, Cancelling(), force=False)
        except (*AWAY, ObjectNotFound):
            reporter().note("the job could not be cancelled: the Prefect server does not answer")
        raise
