"""The real thing once: an embedded Prefect server, the flow, and what its UI would show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.fakes import make_model_folder
from tests.prefect_server import clean_environment

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
_SOURCE = """
import json, sys, time
import pytest
from alphaquant.errors import ModelError
from tests.flows.fakes import use_fake_stages
from flows.cli import main

def refuse(out, store, **inputs):
    raise ModelError("weight x holds NaN")

patch = pytest.MonkeyPatch()
use_fake_stages(patch)
statuses = [main(["run", "--model", "model", "--json", "--out", "out"]) for _ in range(2)]
use_fake_stages(patch, alpha=refuse)
statuses.append(main(["run", "--model", "model", "--out", "out", "--force", "alpha"]))

from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    # the server learns of task runs from events, after the flow run has ended: ten of each whole
    # run, and of the refused one alpha and the four that it does not hold up
    for _ in range(600):
        tasks = client.read_task_runs()
        if len(tasks) >= 25 and all(task.state and task.state.is_final() for task in tasks):
            break
        time.sleep(0.2)
    flows = client.read_flow_runs()
    artifacts = client.read_artifacts()
names = {flow.id: flow.name for flow in flows}
stages = {task.id: task.name.rsplit("-", 1)[0] for task in tasks}
shown = [
    {
        "run": names[task.flow_run_id],
        "stage": task.name.rsplit("-", 1)[0],
        "state": task.state.name,
        "message": task.state.message,
        "inputs": sorted({stages.get(getattr(x, "id", None), str(x)) for found in task.task_inputs.values() for x in found}),
    }
    for task in tasks
]
answer = {
    "statuses": statuses,
    "tasks": shown,
    "flows": {flow.name: flow.state.name for flow in flows},
    "messages": [flow.state.message for flow in flows if flow.state.message],
    "artifacts": [(item.key, str(item.data)) for item in artifacts if item.key],
}
with open("answer.json", "w") as file:
    json.dump(answer, file)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two runs and a refused one left on the server, and on stdout and stderr."""
    folder = tmp_path_factory.mktemp("prefect")
    make_model_folder(folder / "model")
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", _SOURCE],
        cwd=folder,
        env=environment | {"PREFECT_HOME": str(folder / "home"), "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (folder / "answer.json").is_file(), ended.stderr
    answer = json.loads((folder / "answer.json").read_text())
    return answer | {"stdout": ended.stdout, "stderr": ended.stderr}


def _by_run(told: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for task in told["tasks"]:
        runs.setdefault(task["run"], {})[task["stage"]] = task
    return [runs[name] for name in sorted(runs)]


def test_statuses_are_those_of_a_run_without_prefect(told: dict[str, Any]) -> None:
    assert told["statuses"] == [0, 0, 2]


def test_a_hit_is_shown_as_cached_with_its_reason(told: dict[str, Any]) -> None:
    first, second, _ = _by_run(told)
    assert first["quantize"]["state"] == "Completed"
    assert {task["state"] for task in second.values()} == {"Cached"}
    assert second["quantize"]["message"].startswith("unchanged since")


def test_the_dag_is_seen_through_the_artifacts_that_tasks_pass_on(told: dict[str, Any]) -> None:
    first = _by_run(told)[0]
    inputs = {stage: task["inputs"] for stage, task in first.items()}
    assert inputs["alpha"] == []
    assert inputs["allocate"] == ["alpha", "sensitivity"]
    assert inputs["analyze"] == ["allocate", "alpha", "evaluate", "quantize", "sensitivity"]


def test_each_run_shows_its_products_and_the_last_why_it_failed(told: dict[str, Any]) -> None:
    shown = [(key, text) for key, text in told["artifacts"]]
    each = ["figures", "plan", "report", "scores", "stages"]
    assert sorted(key for key, _ in shown) == sorted(["failure", *each, *each])
    assert all("data:image/png;base64," in text for key, text in shown if key == "figures")
    reasons = [text for key, text in shown if key == "stages"]
    assert sum("unchanged since" in text for text in reasons) == 1
    [failure] = [text for key, text in shown if key == "failure"]
    assert failure.startswith("# Stage alpha refused its input\n\n> weight x holds NaN\n")


def test_a_failed_run_says_in_its_state_which_stage_and_why(told: dict[str, Any]) -> None:
    assert told["messages"] == ["Stage alpha failed: weight x holds NaN"]


def test_flow_runs_are_named_like_run_manifests(told: dict[str, Any]) -> None:
    assert sorted(told["flows"].values()) == ["Completed", "Completed", "Failed"]
    ids = [json.loads(text)["run_id"] for text in _objects(told["stdout"])]
    assert set(ids) <= set(told["flows"])


def test_the_terminal_shows_our_lines_and_none_of_prefects(told: dict[str, Any]) -> None:
    assert "weight x holds NaN" in told["stderr"]
    for noise in ("Traceback", "Finished in state", "Beginning flow run", "temporary server"):
        assert noise not in told["stderr"]
        assert noise not in told["stdout"]


@pytest.mark.parametrize("verb", [["run"], ["sweep", "--over", "allocation.target_bits=4,6"]])
def test_a_server_that_does_not_answer_is_a_mistake_in_a_setting(
    verb: list[str], tmp_path: Path
) -> None:
    make_model_folder(tmp_path / "model")
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", *verb, "--model", "model"],
        cwd=tmp_path,
        env=clean_environment()
        | {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "http://127.0.0.1:9/api does not answer. Check PREFECT_API_URL" in ended.stderr


def _objects(text: str) -> list[str]:
    return [f"{part}}}" for part in text.split("\n}\n") if part]
