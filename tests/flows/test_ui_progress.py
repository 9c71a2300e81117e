"""Progress in the Prefect UI: what is said, how often, and that the work never waits for it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from alphaquant.progress import reporter, reporting_to, track
from alphaquant.store.stage import StageResult
from flows import ui_progress
from flows.ui_progress import progress_in_ui

_INTERVAL = 0.05
_SECONDS = 60.0


class Server:
    """Stands for a Prefect server: keeps what a client sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str]] = []
        self.created: list[str] = []
        self.delay = 0.0
        self.problem: Exception | None = None

    def __enter__(self) -> Server:
        time.sleep(self.delay)
        if self.problem:
            raise self.problem
        return self

    def __exit__(self, *problem: object) -> None:
        return None

    def create_artifact(self, artifact: Any) -> Any:
        """The first message of a stage."""
        self.created.append(artifact.key)
        self.sent.append((artifact.data, artifact.description))
        return SimpleNamespace(id=uuid4())

    def update_artifact(self, artifact_id: Any, artifact: Any) -> None:
        """All other messages."""
        self.sent.append((artifact.data, artifact.description))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that other processes could look at."""
    fake = Server()
    monkeypatch.setattr(ui_progress, "get_client", lambda sync_client: fake)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield fake


class Terminal:
    """The display that was there before."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def end(self, result: StageResult) -> None:
        """A stage is done."""

    def update(self, what: str, done: int, total: int) -> None:
        """Progress."""
        self.heard.append((what, done, total))

    def note(self, message: str) -> None:
        """A line."""
        self.heard.append(message)


def _wait_for(server: Server, count: int) -> None:
    limit = time.monotonic() + _SECONDS
    while len(server.sent) < count and time.monotonic() < limit:
        time.sleep(0.01)
    assert len(server.sent) >= count


def _wait_for_text(server: Server, pattern: str) -> tuple[float, str]:
    """The first message that is `pattern`; earlier ones may have been sent between two steps."""
    limit = time.monotonic() + _SECONDS
    while time.monotonic() < limit:
        for percent, text in server.sent:
            if re.fullmatch(pattern, text):
                return percent, text
        time.sleep(0.01)
    raise AssertionError(f"{pattern!r} was not sent, but {server.sent}")


def test_one_artifact_follows_the_blocks_of_a_stage(server: Server) -> None:
    with progress_in_ui("quantize", _INTERVAL):
        for index, _ in enumerate(track(range(4), "block", 4)):
            _wait_for(server, index + 1)
    assert server.created == ["progress-quantize"]
    percents = [percent for percent, _ in server.sent]
    assert percents[0] == 0
    assert percents == sorted(percents)
    assert server.sent[0][1] == "quantize: block 0 of 4"
    _wait_for_text(server, r"quantize: block 2 of 4, about \d+ s left")
    assert _wait_for_text(server, "quantize: done in .*") == (100, server.sent[-1][1])


def test_ten_thousand_steps_cost_a_few_messages(server: Server) -> None:
    started = time.monotonic()
    with progress_in_ui("alpha", _INTERVAL):
        for _ in track(range(10_000), "alpha", 10_000):
            time.sleep(0.00002)
    assert len(server.sent) <= (time.monotonic() - started) / _INTERVAL + 2


def test_a_stage_without_steps_leaves_nothing(server: Server) -> None:
    before = threading.active_count()
    with progress_in_ui("alpha", _INTERVAL):
        time.sleep(3 * _INTERVAL)
        assert threading.active_count() == before
    assert server.sent == []


def test_a_stage_that_is_over_at_once_leaves_nothing(server: Server) -> None:
    with progress_in_ui("export", 5):
        list(track(range(3), "shard", 3))
    assert server.sent == []


def test_a_stage_that_fails_says_where_it_stopped(server: Server) -> None:
    def fail() -> None:
        with progress_in_ui("quantize", _INTERVAL):
            reporter().update("block", 1, 4)
            _wait_for(server, 1)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    percent, _ = _wait_for_text(server, r"quantize: stopped after .* \(block 1 of 4\)")
    assert percent == 25


def test_work_inside_a_step_stands_behind_it(server: Server) -> None:
    with progress_in_ui("compare", _INTERVAL):
        reporter().update("rival plan", 1, 4)
        reporter().update("fidelity", 3, 6)
        percent, _ = _wait_for_text(server, "compare: rival plan 1 of 4; fidelity 3 of 6")
    assert percent == 25


def test_time_left_goes_by_the_last_steps(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(ui_progress, "time", clock)
    moments = [*[1.0] * 90, *[1.0 + 10 * step for step in range(1, 9)]]
    with progress_in_ui("quantize", _INTERVAL):
        for done, clock.now in enumerate(moments):
            reporter().update("block", done, 120)
        _wait_for_text(server, "quantize: block 97 of 120, about 4 min left")


def test_a_server_that_is_away_is_asked_again_and_harms_nothing(server: Server) -> None:
    server.problem = OSError("away")
    with progress_in_ui("quantize", _INTERVAL):
        reporter().update("block", 1, 4)
        time.sleep(3 * _INTERVAL)
        server.problem = None
        _wait_for(server, 1)
    assert server.created == ["progress-quantize"]


def test_a_server_that_hangs_does_not_hold_the_stage_up(server: Server) -> None:
    server.delay = 3.0
    started = time.monotonic()
    with progress_in_ui("quantize", _INTERVAL):
        reporter().update("block", 1, 4)
        time.sleep(2 * _INTERVAL)
    assert time.monotonic() - started < 2


def test_the_terminal_sees_what_it_saw_before(server: Server) -> None:
    terminal = Terminal()
    with reporting_to(terminal):
        with progress_in_ui("quantize", _INTERVAL):
            reporter().update("block", 1, 4)
            reporter().note("raised the damping")
        assert reporter() is terminal
    assert terminal.heard == [("block", 1, 4), "raised the damping"]


def test_a_worker_without_a_terminal_logs_what_the_stage_says(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="alphaquant.run")
    with progress_in_ui("quantize", _INTERVAL):
        reporter().note("raised the damping")
    assert caplog.messages == ["  raised the damping"]


def test_a_stage_that_waits_says_what_for(server: Server) -> None:
    with progress_in_ui("quantize", _INTERVAL):
        reporter().note("quantize: no worker polls the pool gpu")
        _wait_for(server, 1)
    assert server.sent[0] == (0, "quantize: no worker polls the pool gpu")


def test_nothing_is_sent_to_a_server_that_nobody_can_look_at(server: Server) -> None:
    with (
        temporary_settings({PREFECT_API_URL: None}),
        progress_in_ui("quantize", _INTERVAL),
    ):
        reporter().update("block", 1, 4)
        time.sleep(3 * _INTERVAL)
    assert server.sent == []
