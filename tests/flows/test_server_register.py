"""Pools and crash detection: made once, left as the user changed them, and doing what they are for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.states import Completed, Crashed

from flows.server.register import read_deployment_file, register
from tests.flows.server_command import until
from tests.prefect_server import ROOT, PrefectServer, prefect_server

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

_RUN = """
import sys
from prefect import tags
from tests.flows.waiting_flow import wait
with tags("alphaquant"):
    wait(sys.argv[1])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """An empty server."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: PrefectServer) -> Iterator[SyncPrefectClient]:
    """A client of that server, on which everything was registered."""
    with server.client() as found:
        register(found)
        yield found


def test_a_second_call_adds_nothing_and_keeps_the_users_changes(client: SyncPrefectClient) -> None:
    client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=5, is_paused=True))
    [old] = client.read_automations_by_name("alphaquant-crash-detection")
    client.create_automation(AutomationCore.model_validate(old.model_dump(exclude={"id"})))
    register(client)
    pools = {
        pool.name: (pool.concurrency_limit, pool.is_paused) for pool in client.read_work_pools()
    }
    assert pools == {"cpu": (16, False), "gpu": (5, True)}
    [new] = client.read_automations_by_name("alphaquant-crash-detection")
    assert isinstance(new.trigger, EventTrigger)
    assert new.trigger.within == timedelta(seconds=90)


def test_detection_waits_for_three_of_the_heartbeats_that_deployments_send() -> None:
    within = read_deployment_file("crash-detection.json")["trigger"]["within"]
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        sent = deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert within == 3 * int(sent)
        assert "alphaquant" in deployment["tags"]
    for path in (ROOT / "deployments" / "base-job-templates").glob("*.json"):
        env = json.loads(path.read_text())["variables"]["properties"]["env"]["default"]
        assert within == 3 * int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_commands_that_a_variant_names_make_its_pool_and_deployment(
    kind: str, server: PrefectServer, client: SyncPrefectClient
) -> None:
    lines = (ROOT / "deployments" / f"prefect-{kind}.yaml").read_text().splitlines()
    commands = [line.removeprefix("#   ") for line in lines if line.startswith("#   prefect ")]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=ROOT,
            env=server.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
    deployment = client.read_deployment_by_name(f"stage/gpu-{kind}")
    assert deployment.job_variables == {"image": "alphaquant:0.1"}
    pool = client.read_work_pool(f"gpu-{kind}")
    assert pool.type == kind
    assert pool.base_job_template == read_deployment_file(f"base-job-templates/{kind}-gpu.json")


def test_a_run_whose_process_was_killed_becomes_crashed(
    server: PrefectServer, client: SyncPrefectClient, tmp_path: Path
) -> None:
    [automation] = client.read_automations_by_name("alphaquant-crash-detection")
    hasty = read_deployment_file("crash-detection.json")
    hasty["trigger"]["within"] = 10  # the least that Prefect allows
    client.update_automation(automation.id, AutomationCore.model_validate(hasty))
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path)],
        env=server.environment | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
        stderr=subprocess.DEVNULL,
    )
    until((tmp_path / "started").exists)
    [run] = client.read_flow_runs()
    until(lambda: _heartbeats(client) > 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert client.read_flow_run(run.id).state_name == "Running"
    until(lambda: client.read_flow_run(run.id).state_name == "Crashed")
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert str(state.message).startswith("No heartbeat for 90 s")
    # a run that was only out of sight completes all the same, and no late alarm changes that
    client.set_flow_run_state(run.id, Completed())
    client.set_flow_run_state(run.id, Crashed())
    assert client.read_flow_run(run.id).state_name == "Completed"


def _heartbeats(client: SyncPrefectClient) -> int:
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    return len(client.request("POST", "/events/filter", json=wanted).json()["events"])
