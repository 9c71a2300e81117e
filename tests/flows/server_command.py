"""`alphaquant server` as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from flows.server.child import children_of, is_running
from tests.prefect_server import clean_environment

PATIENT_SECONDS = 240
"""For whatever is sure to come: a machine that is busy with other tests may take long."""
READY = "Ctrl-C stops"


class ServerCommand:
    """One call of the command."""

    def __init__(self, folder: Path, port: int | None, *options: str, env: Mapping[str, str]):
        self.folder, self.port = folder, port or 0
        self.output = folder / "output.log"
        self.api_url = f"http://127.0.0.1:{port}/api"
        command = [sys.executable, "-m", "flows.cli", "server"]
        command += ["--port", str(port)] if port else []
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--home", str(folder / "home"), *options],
                cwd=folder,
                env=clean_environment() | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # as a shell does with & in a script
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.output.read_text()

    @property
    def descendants(self) -> list[int]:
        """Every process below it."""
        found = children_of(self.process.pid)
        for process in found:
            found += children_of(process)
        return found

    def until_said(self, text: str) -> None:
        """Wait until it printed `text`."""
        until(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, self.said

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENT_SECONDS)

    def client(self, auth: str | None = None) -> SyncPrefectClient:
        """A client of the server."""
        return SyncPrefectClient(self.api_url, auth_string=auth)


@contextlib.contextmanager
def server_command(
    folder: Path, port: int | None, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[ServerCommand]:
    """Start the command and wait until all is up; whatever a test left is killed."""
    command = ServerCommand(folder, port, *options, env=env or {})
    below: list[int] = []
    try:
        command.until_said(READY)
        below = command.descendants
        yield command
    finally:
        for process in {*below, *command.descendants, command.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        command.process.wait()


def joining(
    folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> contextlib.AbstractContextManager[ServerCommand]:
    """The command that starts no server of its own."""
    return server_command(folder, None, *options, env=env)


def start_waiting_run(client: SyncPrefectClient, pool: str, folder: Path) -> FlowRun:
    """Start `waiting_flow` on a pool and wait until its process says so."""
    folder.mkdir()
    flow_id: UUID = client.create_flow_from_name("waiting")
    deployment = client.create_deployment(
        flow_id,
        name=pool,
        entrypoint="tests.flows.waiting_flow.wait",
        work_pool_name=pool,
        pull_steps=[],
        tags=["alphaquant"],
    )
    run = client.create_flow_run_from_deployment(deployment, parameters={"folder": str(folder)})
    until(lambda: (folder / "started").exists())
    return run


def until(done: Callable[[], bool]) -> None:
    """Wait until something holds; fail when it does not come to hold."""
    limit = time.monotonic() + PATIENT_SECONDS
    while not done():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def none_running(processes: list[int]) -> bool:
    """Whether all have ended."""
    return not any(is_running(process) for process in processes)
