"""Waiting for a job: what is asked of the server while it waits and runs, and what the user is told."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Pending, Running

from alphaquant.progress import reporting_to
from flows import watching
from flows.watching import wait_for


class Server:
    """Stands for a Prefect server: a job that is in each of some states for one look."""

    api_url = "http://head:4200/api"

    def __init__(self, states: list[State[Any]]) -> None:
        self.job = FlowRun(flow_id=uuid4(), name="alpha-1", state=states[0])
        self.asked: Counter[str] = Counter()
        self.workers: list[Any] | None = []
        self._states = iter(states)

    def read_flow_run(self, job: Any) -> FlowRun:
        """The job as it is now."""
        return self.job.model_copy(update={"state": next(self._states)})

    def read_deployment_by_name(self, name: str) -> Any:
        """What takes the jobs of the pool."""
        self.asked["deployment"] += 1
        return SimpleNamespace(work_pool_name="gpu")

    def read_workers_for_work_pool(self, name: str) -> list[Any]:
        """The workers of a pool, unless somebody deleted it."""
        if self.workers is None:
            raise ObjectNotFound(RuntimeError("404"))
        return self.workers

    def read_artifacts(self, **wanted: Any) -> list[Any]:
        """The job's progress."""
        self.asked["progress"] += 1
        return [SimpleNamespace(description=f"block {self.asked['progress']} of 9")]


class Notes:
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, what: str, done: int, total: int) -> None:
        """Not looked at."""

    def note(self, message: str) -> None:
        """One line the user should see."""
        self.said.append(message)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_POLL", (0.0, 0.0))
    monkeypatch.setattr(watching, "_PATIENCE", -1.0)


def _told(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said until the job is done."""

    @contextlib.contextmanager
    def asking() -> Iterator[Server]:
        yield server

    monkeypatch.setattr(watching, "asking", asking)
    notes = Notes()
    with reporting_to(notes):
        done = wait_for(server.job, "gpu", "alpha", lambda job: False)
    assert done.state is not None
    assert done.state.is_completed()
    return notes.said


def test_a_job_that_waits_is_explained_once_and_its_pool_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server([Pending(), Pending(), Pending(), Completed()])
    [said] = _told(server, monkeypatch)
    assert "alpha-1 waits: the pool gpu has no worker" in said
    assert server.asked == {"deployment": 1}


def test_progress_is_asked_for_only_when_it_would_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running(), Running(), Running(), Completed()])
    assert _told(server, monkeypatch) == ["alpha: alpha-1 is running", "block 1 of 9"]
    assert server.asked == {"progress": 1}


def test_a_pool_that_was_deleted_is_not_taken_for_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Pending(), Completed()])
    server.workers = None
    [said] = _told(server, monkeypatch)
    assert "the server has lost the pool gpu" in said
