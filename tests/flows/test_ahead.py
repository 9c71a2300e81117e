"""Work done ahead: not before the server's process is there, and never in the way of the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from flows import ahead
from flows.ahead import working_ahead

_SECONDS = 60.0


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Servers that this process seems to have started."""
    started: list[int] = []
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(ahead, "own_servers", lambda: started)
    monkeypatch.setattr(ahead, "_TICK", 0.001)
    return started


def _do(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    def given() -> Iterator[Callable[[], object]]:
        yield from steps

    monkeypatch.setattr(ahead, "_steps", given)


def test_nothing_is_done_before_the_server_was_started(
    servers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    _do(monkeypatch, done.set)
    with working_ahead():
        assert not done.wait(0.05)
        servers.append(1)
        assert done.wait(_SECONDS)


def test_a_server_that_is_there_is_not_waited_for(
    servers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    done = threading.Event()
    _do(monkeypatch, done.set)
    with working_ahead():
        assert done.wait(_SECONDS)


def test_what_fails_stops_neither_the_run_nor_the_rest(
    servers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ImportError("pandas")

    servers.append(1)
    done = threading.Event()
    _do(monkeypatch, fail, done.set)
    with working_ahead():
        assert done.wait(_SECONDS)


def test_the_rest_is_left_out_when_the_run_is_over(
    servers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.append(1)
    begun, over, late = threading.Event(), threading.Event(), threading.Event()
    join = threading.Thread.join

    def joined(thread: threading.Thread, timeout: float | None = None) -> None:
        over.set()
        join(thread, timeout)

    def first() -> None:
        begun.set()
        over.wait(_SECONDS)

    _do(monkeypatch, first, late.set)
    with working_ahead():
        assert begun.wait(_SECONDS)
        monkeypatch.setattr(
            threading.Thread, "join", joined
        )  # the run is over when it waits for us
    assert over.is_set()
    assert not late.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "working-ahead"]


def test_every_step_can_be_done() -> None:
    for step in ahead._steps():
        step()
