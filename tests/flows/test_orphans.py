"""Servers of killed runs are ended; servers of living runs and strangers are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alphaquant.store.artifacts import ArtifactStore
from flows.orphans import SERVER, end_orphans, note_own_server

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that looks like a server (or not) and sleeps."""
    started: list[subprocess.Popen[bytes]] = []

    def call(name: str = SERVER) -> subprocess.Popen[bytes]:
        source = "import sys, time; print(flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", source, name], stdout=subprocess.PIPE)
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


def _note(store: ArtifactStore, process: subprocess.Popen[bytes]) -> Path:
    return store.root / "cache" / "servers" / f"{process.pid}.json"


def _owner_died(note: Path) -> None:
    content = json.loads(note.read_text())
    content["owner"][1] -= 1  # another process had this id
    note.write_text(json.dumps(content))


def test_the_server_of_a_living_run_is_left_alone(store: ArtifactStore, start: Start) -> None:
    server = start()
    note_own_server(store)
    assert end_orphans(store) == []
    assert server.poll() is None


def test_the_server_of_a_dead_run_is_ended_once(store: ArtifactStore, start: Start) -> None:
    server = start()
    note_own_server(store)
    _owner_died(_note(store, server))
    assert end_orphans(store) == [server.pid]
    assert server.wait(10) != 0
    assert end_orphans(store) == []
    assert not _note(store, server).exists()


def test_a_process_that_took_a_dead_servers_id_is_left_alone(
    store: ArtifactStore, start: Start
) -> None:
    server, stranger = start(), start("something else")
    note_own_server(store)
    note = _note(store, server)
    _owner_died(note)
    content = json.loads(note.read_text())
    content["server"][0] = stranger.pid
    note.write_text(json.dumps(content))
    assert end_orphans(store) == []
    assert stranger.poll() is None
    assert server.poll() is None


def test_other_children_are_not_noted(store: ArtifactStore, start: Start) -> None:
    start("something else")
    note_own_server(store)
    assert not (store.root / "cache").exists()
