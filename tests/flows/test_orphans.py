"""Servers of killed runs are ended; servers of living runs and strangers are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.orphans import MARK, SERVER, end_orphans, mark_servers, own_servers

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a process that looks like a server (or not) and sleeps; it is ours unless the mark says otherwise."""
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.delenv(MARK, raising=False)

    def call(name: str = SERVER, mark: Callable[[str], str] = str) -> subprocess.Popen[bytes]:
        mark_servers()
        environment = os.environ | {MARK: mark(os.environ[MARK])}
        source = "import sys, time; print(flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-c", source, name], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout
        process.stdout.readline()
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def _of_the_dead(mark: str) -> str:
    """Another process had this id."""
    process, since, namespace = mark.split()
    return f"{process} {int(since) - 1} {namespace}"


def test_the_server_of_a_living_run_is_left_alone(start: Start) -> None:
    server = start()
    assert server.pid not in end_orphans()
    assert server.poll() is None


def test_of_our_children_only_servers_count_as_ours(start: Start) -> None:
    server, _ = start(), start("something else")
    assert own_servers() == [server.pid]


def test_the_server_of_a_dead_run_is_ended_once(start: Start) -> None:
    server = start(mark=_of_the_dead)
    assert server.pid in end_orphans()
    assert server.wait(10) != 0
    assert server.pid not in end_orphans()


def test_a_server_that_ends_by_itself_meanwhile_stops_nobody(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(process: int, number: int) -> None:
        raise ProcessLookupError

    start(mark=_of_the_dead)
    monkeypatch.setattr(os, "kill", gone)
    end_orphans()


def test_what_is_no_server_is_left_alone(start: Start) -> None:
    stranger = start("something else", mark=_of_the_dead)
    assert stranger.pid not in end_orphans()
    assert stranger.poll() is None


def test_a_server_whose_owner_this_machine_cannot_see_is_left_alone(start: Start) -> None:
    server = start(mark=lambda mark: f"{_of_the_dead(mark).rpartition(' ')[0]} pid:[1]")
    assert server.pid not in end_orphans()
    assert server.poll() is None
