"""Keeping processes running and ending them, shown on small stand-ins for workers and flow runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.server.child import children_of, is_running
from tests.flows.server_command import none_running, until
from tests.prefect_server import clean_environment

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks at processes in /proc"
)

_SUPERVISOR = """
import os, sys
from pathlib import Path
from flows.server import supervise
from flows.server.child import Child
from flows.server.options import ServerOptions

folder = Path.cwd()
supervise.worker_children = lambda options, environment: [
    Child("worker", [sys.executable, "-c", sys.argv[1]], os.environ, folder / "worker.log", folder)
]
supervise.answers = lambda url: True
supervise.check_password = lambda url, password: None
options = ServerOptions("127.0.0.1", 1, folder, "store", ("",), 0, joins="http://head:4200/api")
print(supervise.Supervisor(options, os.environ, lambda text: print(text, flush=True)).run("all is up"))
"""
# a worker whose flow run has a group of its own, as Prefect's have; `deaf` ones do not end on SIGTERM
_WORKER = """
import signal, subprocess, sys, time
{deaf} and signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; {deaf} and signal.signal(signal.SIGTERM, signal.SIG_IGN); print('flow', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
time.sleep(600)
"""
_NOTING = """
import signal, subprocess, sys, time
def told(*_):
    print("told when its flow run had ended with", flow.poll(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
code = "import time; print('flow', flush=True); time.sleep(600)"
flow = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
while flow.poll() is None:
    time.sleep(0.01)
print("went on", flush=True)
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a supervisor of one worker with the given source."""
    started: list[subprocess.Popen[str]] = []

    def call(source: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SUPERVISOR, source],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        _until_said(process, "all is up")
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def _until_said(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def _worker_and_flow(supervisor: subprocess.Popen[str], folder: Path) -> tuple[int, int]:
    until(lambda: "flow" in (folder / "worker.log").read_text())
    [worker] = children_of(supervisor.pid)
    [flow] = children_of(worker)
    return worker, flow


def test_a_second_signal_kills_what_does_not_stop(start: Start, tmp_path: Path) -> None:
    supervisor = start(_WORKER.format(deaf=True))
    processes = _worker_and_flow(supervisor, tmp_path)
    supervisor.send_signal(signal.SIGTERM)
    _until_said(supervisor, "flow runs still active: 1")
    assert all(map(is_running, processes))
    supervisor.send_signal(signal.SIGINT)
    rest, _ = supervisor.communicate(timeout=25)  # of itself it would wait for 30 s
    assert none_running([*processes])
    assert rest.strip() == str(int(signal.SIGTERM))  # the first one counts


def test_a_worker_is_halted_until_its_flow_runs_have_ended(start: Start, tmp_path: Path) -> None:
    supervisor = start(_NOTING)
    processes = _worker_and_flow(supervisor, tmp_path)
    supervisor.send_signal(signal.SIGTERM)
    supervisor.communicate(timeout=20)
    assert none_running([*processes])
    said = (tmp_path / "worker.log").read_text()
    assert f"told when its flow run had ended with {-signal.SIGTERM}" in said
    assert "went on" not in said


def test_a_worker_that_keeps_ending_is_started_ever_more_rarely(start: Start) -> None:
    supervisor = start("print('no such pool'); raise SystemExit(3)")
    for pause in (1, 2):
        line = _until_said(supervisor, "worker ended with status 3")
        assert f"starting it again in {pause} s" in line
        assert "no such pool" in _until_said(supervisor, "no such pool")
        _until_said(supervisor, "worker started again")


def test_what_was_started_ends_with_a_killed_supervisor(start: Start, tmp_path: Path) -> None:
    supervisor = start(_WORKER.format(deaf=False))
    worker, flow = _worker_and_flow(supervisor, tmp_path)
    supervisor.kill()
    until(lambda: not is_running(worker))
    os.kill(flow, signal.SIGKILL)  # a Prefect worker would have done so
