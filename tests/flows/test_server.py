"""`alphaquant server` for real: what it starts, what it keeps, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate

from flows.server.child import children_of
from tests.flows.conftest import Cli
from tests.flows.server_command import (
    ServerCommand,
    joining,
    none_running,
    server_command,
    start_waiting_run,
    until,
)
from tests.prefect_server import empty_database, free_port

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc"),
]
HOST = re.escape(socket.gethostname())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this file have their state, one after the other."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerCommand]:
    """A server with two pretended GPUs."""
    (folder / "home").mkdir()
    shutil.copyfile(empty_database(), folder / "home" / "prefect.db")
    with server_command(folder, free_port(), "--gpus", "0,1", "--store", "store") as command:
        yield command


@pytest.fixture(scope="module")
def client(server: ServerCommand) -> Iterator[SyncPrefectClient]:
    """A client of that server."""
    with server.client() as found:
        yield found


def test_it_makes_pools_deployments_and_crash_detection(client: SyncPrefectClient) -> None:
    pools = {pool.name: pool.concurrency_limit for pool in client.read_work_pools()}
    assert pools == {"cpu": 16, "gpu": 64}
    flows = {flow.id: flow.name for flow in client.read_flows()}
    made = {
        f"{flows[found.flow_id]}/{found.name}": (found.work_pool_name, found.tags)
        for found in client.read_deployments()
    }
    assert made == {
        "quantize-model/run": ("cpu", ["alphaquant"]),
        "quantize-model/balanced": ("cpu", ["alphaquant"]),
        "quantize-model/best": ("cpu", ["alphaquant"]),
        "sweep/run": ("cpu", ["alphaquant"]),
        "experiment/run": ("cpu", ["alphaquant"]),
        "stage/gpu": ("gpu", ["alphaquant"]),
    }
    [automation] = client.read_automations()
    assert automation.name == "alphaquant-crash-detection"
    assert automation.enabled


def test_the_form_shows_sections_with_described_fields_and_choices(
    client: SyncPrefectClient,
) -> None:
    schema = client.read_deployment_by_name("quantize-model/run").parameter_openapi_schema
    assert schema is not None
    config, parts = schema["properties"]["config"], schema["definitions"]
    assert config["description"].startswith("What to do")
    allocation = parts["AllocationConfig"]["properties"]
    assert allocation["target_bits"]["description"].startswith("Policies budget and alpha")
    assert allocation["policy"]["enum"] == ["budget", "ratio", "alpha", "uniform", "manual"]
    sections = {
        part["$ref"].rpartition("/")[2] for part in parts["RunConfig"]["properties"].values()
    }
    undescribed = [
        f"{section}.{name}"
        for section in sections
        for name, field in parts[section]["properties"].items()
        if not field.get("description")
    ]
    assert undescribed == []


def test_a_worker_per_gpu_and_one_for_the_cpu_are_online(
    client: SyncPrefectClient, server: ServerCommand
) -> None:
    def online(pool: str) -> list[str]:
        found = client.read_workers_for_work_pool(pool)
        return sorted(worker.name for worker in found if worker.status == "ONLINE")

    until(lambda: len(online("gpu")) == 2 and len(online("cpu")) == 1)
    assert re.fullmatch(f"{HOST}-gpu0 {HOST}-gpu1", " ".join(online("gpu")))
    assert re.fullmatch(f"{HOST}-cpu1", online("cpu")[0])


def test_nothing_listens_beyond_this_machine(server: ServerCommand) -> None:
    owned = {name for process in server.descendants for name in _handles(process)}
    addresses = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                addresses.add(fields[1])
    assert f"0100007F:{server.port:04X}" in addresses
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}


def test_the_ui_finds_its_api_under_the_address_it_came_from(server: ServerCommand) -> None:
    with urllib.request.urlopen(f"http://localhost:{server.port}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == "/api"
    for ui in ("", "/v2"):
        with urllib.request.urlopen(f"http://localhost:{server.port}{ui}/") as answer:
            assert "<title>Prefect" in answer.read().decode()


def test_a_second_server_on_the_port_or_in_the_folder_starts_nothing(
    server: ServerCommand, cli: Cli, tmp_path: Path
) -> None:
    ending = cli("server", "--port", str(server.port), "--home", str(tmp_path / "other"))
    assert ending.status == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in ending.stderr
    assert not (tmp_path / "other").exists()
    home = str(server.folder / "home")
    ending = cli("server", "--port", str(free_port()), "--home", home)
    assert ending.status == 2
    assert f"process {server.process.pid} serves from {home} already" in ending.stderr


def test_another_machine_joins_with_its_gpus(
    server: ServerCommand, client: SyncPrefectClient, tmp_path: Path
) -> None:
    options = ["--join", server.api_url, "--store", str(server.folder / "store")]
    with joining(tmp_path, *options, env={"CUDA_VISIBLE_DEVICES": "7"}) as other:
        name = f"{socket.gethostname()}-gpu7"
        assert f"workers   {name}\n" in other.said
        until(lambda: name in {found.name for found in client.read_workers_for_work_pool("gpu")})
        below = other.descendants
        assert len(below) == 1
        assert other.stop(signal.SIGTERM) == 0
        assert none_running(below)


def test_a_killed_worker_is_reported_and_started_again(
    server: ServerCommand, client: SyncPrefectClient, tmp_path: Path
) -> None:
    run = start_waiting_run(client, "gpu", tmp_path / "run")
    until(lambda: _tags_of_heartbeats(client, run.id) == ["prefect.tag.alphaquant"])
    process, device = (tmp_path / "run" / "started").read_text().split()
    worker = next(
        pid for pid in children_of(server.process.pid) if int(process) in children_of(pid)
    )
    os.kill(worker, signal.SIGKILL)
    server.until_said(f"gpu{device} ended with status -9")
    server.until_said(f"gpu{device} started again")
    # its flow run goes on, looked after by the command
    assert int(process) in children_of(server.process.pid)
    assert client.read_flow_run(run.id).state_name == "Running"


def test_sigterm_ends_flow_runs_at_a_safe_point_and_leaves_nothing(
    server: ServerCommand, client: SyncPrefectClient, tmp_path: Path
) -> None:
    run = start_waiting_run(client, "cpu", tmp_path / "run")
    client.update_work_pool("cpu", WorkPoolUpdate(concurrency_limit=3))
    below = server.descendants
    assert len(below) >= 6  # server, three workers, two flow runs
    assert server.stop(signal.SIGTERM) == 0
    assert none_running(below)
    assert (tmp_path / "run" / "told").read_text() == "TerminationSignal"
    assert "flow runs still active: 2" in server.said
    assert "Traceback" not in server.said
    (server.folder / "stopped").write_text(str(run.id))


def test_it_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    command = ServerCommand(tmp_path, free_port(), "--gpus", "0", env={})
    command.until_said("starting on")
    until(lambda: bool(command.descendants))
    below = command.descendants
    assert command.stop(signal.SIGTERM) == 0
    assert none_running(below)
    assert "Traceback" not in command.said


def test_history_and_changes_survive_and_a_killed_command_leaves_no_orphan(
    folder: Path, tmp_path: Path
) -> None:
    before = (folder / "stopped").read_text()
    with server_command(folder, free_port(), "--gpus", "1", "--store", "store") as command:
        with command.client() as client:
            run = client.read_flow_run(before)
            assert run.state_name == "Crashed"
            assert client.read_work_pool("cpu").concurrency_limit == 3
            assert len(client.read_automations()) == 1
            assert len(client.read_deployments()) == 8  # six, and two of this file
            start_waiting_run(client, "gpu", tmp_path / "run")
        below = command.descendants
        command.process.kill()
        until(lambda: none_running(below))


def _tags_of_heartbeats(client: SyncPrefectClient, run: UUID) -> list[str]:
    """What crash detection recognizes runs by."""
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    found = client.request("POST", "/events/filter", json=wanted).json()["events"]
    return [
        related["prefect.resource.id"]
        for event in found
        if event["resource"]["prefect.resource.id"] == f"prefect.flow-run.{run}"
        for related in event["related"]
        if related["prefect.resource.role"] == "tag"
    ]


def _handles(process: int) -> list[str]:
    """What a process has open."""
    found = []
    for path in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return found
