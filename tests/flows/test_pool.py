"""GPU stages as jobs of a pool: sent only when needed, once, never two on one device; failures told as they are."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.flows.fakes import GPU_STAGES
from tests.flows.pool import Pool, gpu_pool
from tests.flows.server_command import until

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

RUN = ("run", "--model", "model", "--json")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with gpu_pool(tmp_path_factory.mktemp("pool")) as made:
        for device in ("first", "second"):
            made.start_worker(device, FAKE_SECONDS="1.5")
        yield made


@pytest.fixture(scope="module")
def two_at_once(pool: Pool) -> list[dict[str, Any]]:
    """Summaries of two runs that were started together and differ in their budget."""
    commands = [
        pool.command(*RUN, "--out", f"out{bits}", "--set", f"allocation.target_bits={bits}")
        for bits in (3, 4)
    ]
    return [json.loads(_ended(command, 0)[0]) for command in commands]


def _ended(command: subprocess.Popen[str], status: int) -> tuple[str, str]:
    out, err = command.communicate(timeout=300)
    assert command.returncode == status, err
    return out, err


def _entries(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [stage for summary in summaries for stage in summary["stages"]]


def test_common_stages_are_computed_once(two_at_once: list[dict[str, Any]], pool: Pool) -> None:
    ran = [stage["name"] for stage in _entries(two_at_once) if stage["state"] == "ran"]
    for name in ("baseline", "answers", "sensitivity"):
        assert ran.count(name) == 1, name
    assert ran.count("quantize") == 2
    assert len([name for name in pool.jobs() if name.startswith("sensitivity")]) == 1


def test_gpu_stages_ran_on_devices_and_the_others_did_not(
    two_at_once: list[dict[str, Any]],
) -> None:
    for stage in _entries(two_at_once):
        if stage["state"] == "ran":
            on_gpu = stage["name"] in GPU_STAGES
            assert stage["device"] in (("first", "second") if on_gpu else ("cpu",)), stage


def test_no_device_had_two_stages_at_a_time(two_at_once: list[dict[str, Any]], pool: Pool) -> None:
    spans: dict[str, list[tuple[datetime, datetime]]] = {"first": [], "second": []}
    for stage in _entries(pool.manifests()):
        if stage["state"] == "ran" and stage["name"] in GPU_STAGES:
            span = (datetime.fromisoformat(stage[when]) for when in ("started", "ended"))
            spans[stage["device"]].append(tuple(span))  # type: ignore[arg-type]
    assert all(spans.values()), "both devices worked"
    for found in spans.values():
        for before, after in itertools.pairwise(sorted(found)):
            assert before[1] <= after[0]


def test_blocks_are_counted_where_they_ran(two_at_once: list[dict[str, Any]]) -> None:
    assert sorted(summary["blocks"]["ran"] for summary in two_at_once) <= [4, 4]
    assert sum(summary["blocks"]["ran"] for summary in two_at_once) == 2 + 2 * 2
    assert sum(summary["blocks"]["cached"] for summary in two_at_once) == 2


def test_a_hit_sends_no_job(two_at_once: list[dict[str, Any]], pool: Pool) -> None:
    before = pool.jobs()
    command = pool.command(*RUN, "--out", "out3", "--set", "allocation.target_bits=3")
    summary = json.loads(_ended(command, 0)[0])
    assert {stage["state"] for stage in summary["stages"]} <= {"cached", "skipped"}
    assert pool.jobs() == before


def test_a_users_mistake_found_by_a_worker_is_told_as_one(pool: Pool) -> None:
    pool.stop_workers()
    pool.start_worker("first", FAKE_FAILURE="sensitivity")
    command = pool.command(*RUN, "--out", "bad", "--force", "sensitivity")
    _, err = _ended(command, 2)
    assert "weight x holds NaN (stage sensitivity, on a worker" in err
    assert "Traceback" not in err


def test_a_sweep_fans_out_and_shares_what_points_have_in_common(pool: Pool) -> None:
    pool.stop_workers()
    for device in ("first", "second"):
        pool.start_worker(device, FAKE_SECONDS="0.5")
    over = ("--set", "allocation.target_bits=5", "--over", "quantization.method=gptq,rtn")
    command = pool.command("sweep", "--model", "model", "--json", "--out", "sweep", *over)
    summary = json.loads(_ended(command, 0)[0])
    names = [point["point"] for point in summary["points"]]
    assert names == ["method=gptq", "method=rtn"]
    # fake blocks depend on the bits alone, so both points want the same four; two are known already
    assert sum(point["blocks_ran"] for point in summary["points"]) == 2
    table = pd.read_parquet(pool.folder / summary["table"])
    assert list(table["bits_per_weight"]) == [5, 5]
    assert (pool.folder / summary["figure"]).read_bytes().startswith(b"\x89PNG")
    for point in summary["points"]:
        assert (pool.folder / point["checkpoint"] / "model.safetensors").is_file()


def test_a_sweep_is_tagged_and_its_points_are_named_by_their_values_braces_and_all(
    pool: Pool,
) -> None:
    over = ("--over", "allocation.default={wq: int4},{wq: int8}")
    command = pool.command("sweep", "--model", "model", "--json", "--out", "braces", *over)
    summary = json.loads(_ended(command, 0)[0])
    names = ["default={wq: int4}", "default={wq: int8}"]
    assert [point["point"] for point in summary["points"]] == names
    with pool.server.client() as client:
        # the server learns of task runs from events, after the flow run has ended
        until(lambda: set(names) <= {task.name for task in client.read_task_runs()})
        [run] = [run for run in client.read_flow_runs() if run.name == summary["run_id"]]
    assert "alphaquant" in run.tags, "crash detection would not see that it was killed"


def test_without_a_worker_the_user_is_told(pool: Pool) -> None:
    pool.stop_workers()
    with pool.server.client() as client:  # a worker counts as online until it has missed heartbeats
        for worker in client.read_workers_for_work_pool("gpu"):
            client._client.delete(f"/work_pools/gpu/workers/{worker.name}")
    command = pool.command(*RUN, "--out", "none", "--force", "sensitivity")
    assert command.stderr is not None
    said = ""
    for line in command.stderr:
        said += line
        if "has no worker" in line:
            break
    command.terminate()
    _, rest = _ended(command, 143)
    assert f"alphaquant server --join {pool.server.api_url}" in said
    assert "Traceback" not in said + rest
    with pool.server.client() as client:
        last = max(client.read_flow_runs(), key=lambda run: run.created or datetime.min)
        jobs = [run for run in client.read_flow_runs() if run.deployment_id == last.deployment_id]
    assert all(job.state and job.state.is_final() for job in jobs), "no job is left behind"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PREFECT_API_URL": ""}, "needs a Prefect server that workers share"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "does not answer"),
    ],
)
def test_a_pool_needs_a_server(pool: Pool, settings: dict[str, str], message: str) -> None:
    _, err = _ended(pool.command(*RUN, "--out", "x", **settings), 2)
    assert message in err


def test_a_pool_without_its_deployment_is_a_mistake(pool: Pool, tmp_path: Path) -> None:
    command = pool.command(*RUN, "--out", "x", "--set", "execution.pool=h200")
    _, err = _ended(command, 2)
    assert "has no deployment 'stage/h200'" in err
