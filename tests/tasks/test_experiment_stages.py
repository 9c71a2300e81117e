"""A whole experiment on a tiny model, with the real stages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alphaquant.algorithms.arms import ARM_NAMES
from alphaquant.config import ExecutionConfig, QuantizationConfig
from alphaquant.config.file import load_config
from alphaquant.models.resolve import ModelRef
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import load_run
from alphaquant.store.stage import run_stage
from flows.experiment_run import prepare_experiment, run_experiment
from flows.runner import run_here
from tasks.trial import trial
from tests.tiny import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactStore, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("experiment")
    words = random.Random(0).choices(
        ["alpha", "tail", "spectrum", "expert", "router", "bits", "weight"], k=900
    )
    (folder / "text.txt").write_text(" ".join(words))
    config = load_config(
        None,
        [
            f"model.path={make_model(folder / 'model', 'olmoe')}",
            f"calibration.dataset={folder / 'text.txt'}",
            "calibration.samples=8",
            "calibration.sequence_length=32",
            f"evaluation.dataset={folder / 'text.txt'}",
            "evaluation.sequence_length=32",
            "evaluation.limit=6",
            "quantization.group_size=16",
            "allocation.formats=[int2,int3,int4,int8]",
            "allocation.target_bits=5",
            "experiment.seeds=1",
            "experiment.draws=2",
            "experiment.gammas=[1]",
            "experiment.front=[4.5]",
            "experiment.uniform=[int4]",
            f"experiment.rivals=['{folder / 'model'}@16']",  # the model itself
        ],
    )
    store = ArtifactStore(folder / "store")
    request, rivals = prepare_experiment(config, store, folder / "out")
    return folder / "out", store, run_experiment(request, rivals, run_here)


def test_all_arms_are_measured_at_the_same_bits(
    done: tuple[Path, ArtifactStore, dict[str, Any]],
) -> None:
    out, _, summary = done
    assert {row["arm"] for row in summary["arms"]} == {*ARM_NAMES}
    results = pd.read_parquet(out / "results.parquet")
    own = results[~results["front"]]
    assert own["bits_per_weight"].between(4.85, 5.0).all()
    assert own["kl"].between(1e-6, 5).all()
    assert own.loc[own["arm"] == "random", "kl"].nunique() == 2
    [int4] = results[results["label"] == "front int4"].to_dict("records")
    assert int4["bits_per_weight"] > 5  # groups of 16 and kept routers
    text = (out / "experiment.md").read_text()
    assert "Alpha" in text
    assert "| model (16) | 16.000 | 0 |" in text
    assert json.loads((out / "verdict.json").read_text()).keys() == {
        "helps",
        "alone",
        "adds",
        "better",
    }


def test_an_interrupted_trial_goes_on_behind_its_last_plan(
    done: tuple[Path, ArtifactStore, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, summary = done
    [entry] = [s for s in summary["stages"] if s["name"] == "trial random, seed 0"]
    record = json.loads((store.root / "keys" / "trial" / f"{entry['key']}.json").read_text())
    assert record["units"] == record["units_ran"] == 2
    (store.root / "keys" / "trial" / f"{entry['key']}.json").unlink()
    monkeypatch.setattr("alphaquant.evaluation.ruler.Ruler", None)  # nothing is to be measured
    again = run_stage(trial, store, _inputs(store))
    assert (again.state, again.units_ran, again.units_cached) == ("ran", 0, 2)
    assert str(store.place(again.ref)) == entry["artifact"]


def test_a_trial_without_room_for_the_whole_model_measures_its_plans(
    done: tuple[Path, ArtifactStore, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, summary = done
    [entry] = [s for s in summary["stages"] if s["name"] == "trial random, seed 0"]
    whole = pd.read_parquet(Path(entry["artifact"]) / "windows.parquet")
    monkeypatch.setattr("alphaquant.evaluation.room.Room.holds", lambda *_: False)
    inputs = _inputs(store)
    # a key of its own, and about the same codes
    other = inputs["quantization"].model_copy(update={"damping": 0.010001})
    ran = run_stage(trial, store, inputs | {"quantization": other})
    by_block = pd.read_parquet(store.place(ran.ref) / "windows.parquet")
    assert by_block["kl"].to_numpy() == pytest.approx(whole["kl"].to_numpy(), rel=0.01)


def _inputs(store: ArtifactStore) -> dict[str, Any]:
    """What the trial of the arm random was given."""
    manifest = load_run(store, "last")
    refs = {name: ArtifactRef.model_validate(ref) for name, ref in manifest["refs"].items()}
    return {
        "model": ModelRef.model_validate(manifest["model_ref"]),
        "plans": refs["arm random, seed 0"],
        "tokens": refs["calibration, seed 0"],
        "baseline": refs["baseline"],
        "quantization": QuantizationConfig.model_validate(manifest["config"]["quantization"]),
        "execution": ExecutionConfig(),
    }
