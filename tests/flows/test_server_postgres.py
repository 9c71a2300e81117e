"""The server on PostgreSQL, with a password, stopped by Ctrl-C: what a team's machine runs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prefect.client.schemas.filters import FlowRunFilter

from tests.flows.server_command import (
    PATIENT_SECONDS,
    none_running,
    server_command,
    start_waiting_run,
)
from tests.prefect_server import free_port

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
_FOUND = shutil.which(
    "initdb", path=os.pathsep.join(map(str, _PROGRAMS)) + ":" + os.environ["PATH"]
)
_PASSWORD = "admin:correct horse"

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(_FOUND is None, reason="PostgreSQL is not installed"),
]


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root."""
    return None if os.getuid() else pwd.getpwnam("postgres").pw_name


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty database on a server of its own."""
    assert _FOUND
    programs, user, port = Path(_FOUND).parent, _unprivileged(), free_port()
    with tempfile.TemporaryDirectory(prefix="alphaquant-pg-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        data = str(folder / "data")
        create = ["--username=prefect", "--auth=trust", "--no-sync"]

        def call(program: str, *arguments: str) -> None:
            subprocess.run(
                [programs / program, "--pgdata", data, *arguments],
                user=user,
                cwd=folder,
                check=True,
                capture_output=True,
            )

        call("initdb", *create)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        call("pg_ctl", "start", "--wait", "--log", str(folder / "log"), "--options", options)
        try:
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "--mode=immediate")


def test_history_is_kept_behind_a_password(database: str, tmp_path: Path) -> None:
    port = free_port()
    options = ["--database", database, "--store", "store"]
    env = {"PREFECT_SERVER_API_AUTH_STRING": _PASSWORD}
    with server_command(
        tmp_path, port, *options, "--gpus", "1", "--cpu-workers", "0", env=env
    ) as first:
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(f"{first.api_url}/flows/filter", data=b"{}", method="POST"))
        refused.value.close()
        assert refused.value.code == 401
        with first.client(_PASSWORD) as client:
            run = start_waiting_run(client, "gpu", tmp_path / "run")
        below = first.descendants
        assert first.stop(signal.SIGINT) == 130
        assert none_running(below)
        assert "Traceback" not in first.said
        assert _PASSWORD not in first.said
    assert not list((tmp_path / "home").glob("prefect.db*"))

    with server_command(
        tmp_path, port, *options, "--gpus", "0", "--cpu-workers", "0", env=env
    ) as second:
        with second.client(_PASSWORD) as client:
            [found] = client.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
            assert found.state_name == "Crashed"
        below = second.descendants
        os.kill(below[0], signal.SIGKILL)
        assert second.process.wait(PATIENT_SECONDS) == 1
        assert "the Prefect server ended with status -9. The end of its log" in second.said
        assert none_running(below)
