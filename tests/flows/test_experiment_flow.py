"""The experiment through the command and an embedded Prefect server: tasks, pages, one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.fakes import make_model_folder

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
_SOURCE = """
import json, sys
import pytest
from tests.flows.test_experiment import use_fake_experiment
from flows.cli import main

use_fake_experiment(pytest.MonkeyPatch())
command = ["sweep", "--experiment", "alpha", "--model", "model", "--out", "out", "--json"]
for setting in ("quantization.group_size=16", "experiment.seeds=1", "experiment.draws=1",
                "experiment.front=[]", "experiment.uniform=[]"):
    command += ["--set", setting]
status = main(command)

from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    flows = client.read_flow_runs()
    artifacts = client.read_artifacts()
answer = {
    "status": status,
    "flows": [flow.state.name for flow in flows],
    "tags": [flow.tags for flow in flows],
    "artifacts": {artifact.key: artifact.data for artifact in artifacts},
}
open("answer.json", "w").write(json.dumps(answer, default=str))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("flow")
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
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found | {"said": json.loads(ended.stdout), "folder": folder, "stderr": ended.stderr}


def test_the_command_ends_well_and_says_one_json_object(answer: dict[str, Any]) -> None:
    assert answer["status"] == 0, answer["stderr"]
    assert answer["said"]["experiment"] == "alpha"
    assert answer["said"]["verdict"] == {"helps": False}
    assert json.loads((answer["folder"] / "out" / "summary.json").read_text()) == answer["said"]


def test_the_flow_is_watched_and_shows_its_page(answer: dict[str, Any]) -> None:
    assert answer["flows"] == ["Completed"]
    assert answer["tags"] == [["alphaquant"]]
    assert answer["artifacts"]["sweep"].startswith("# page")
