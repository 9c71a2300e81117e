"""`alphaquant plan` and the verbs that explain answer at once: they load neither torch nor Prefect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.fakes import make_model_folder

_ROOT = Path(__file__).parents[2]
_SOURCE = """
import sys, time
from alphaquant.store.runs import save_run
from flows.cli import main
from flows.preflight import open_store
status = main(["plan", "--model", "model"])
heavy = {"torch", "transformers", "prefect", "pandas", "matplotlib", "lm_eval", "datasets"}
print("loaded:", sorted(heavy & set(sys.modules)), file=sys.stderr)
print("seconds:", time.process_time(), file=sys.stderr)
for verb in (["plan", "--force-from", "quantize"], ["accept", "--all"]):
    status += main([*verb, "--model", "model"])
for run_id in ("1", "2"):
    manifest = {"run_id": run_id, "status": "completed", "model": "toy", "stages": []}
    save_run(open_store(), manifest)
for verb in (["why", "last"], ["why", "alpha"], ["diff", "last~1", "last"]):
    status += main(verb)
print("loaded by others:", sorted(heavy & set(sys.modules)), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a fresh process says after planning."""
    folder = tmp_path_factory.mktemp("plan")
    make_model_folder(folder / "model")
    ended = subprocess.run(
        [sys.executable, "-c", _SOURCE],
        cwd=folder,
        env={"PYTHONPATH": str(_ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split(": ", 1) for line in ended.stderr.splitlines())


def test_plan_loads_nothing_heavy(told: dict[str, str]) -> None:
    assert told["loaded"] == "[]"


def test_accept_why_and_diff_load_nothing_heavy(told: dict[str, str]) -> None:
    assert told["loaded by others"] == "[]"


def test_plan_takes_less_than_two_seconds(told: dict[str, str]) -> None:
    assert float(told["seconds"]) < 2
