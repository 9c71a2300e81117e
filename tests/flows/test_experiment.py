"""An experiment: one conclusion from many cached steps, shared with runs, resumed after a failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import flows.experiment_dag
from alphaquant.algorithms.arms import ARM_NAMES, ARMS
from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from alphaquant.errors import PlanError, UserError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.runs import load_run, run_ids
from alphaquant.store.stage import Skipped, Stage, Workbench
from flows.experiment_dag import Step
from flows.experiment_run import PAGE, TABLE, prepare_experiment, run_experiment
from flows.runner import run_here
from tests.flows import fakes
from tests.flows.fakes import make_model_folder

TRIALS: list[str] = []


def _write(out: Path, name: str, **inputs: Any) -> None:
    known = {key: value for key, value in inputs.items() if isinstance(value, str | int)}
    (out / name).write_text(json.dumps(known, sort_keys=True))


def _oracle(out: Path, store: Workbench, **inputs: Any) -> None:
    _write(out, "oracle", tokens=str(inputs["tokens"].digest))


def _arm(out: Path, store: Workbench, **inputs: Any) -> None:
    bits = inputs["allocation"].target_bits
    _write(
        out, "arm", arm=inputs["arm"], draws=inputs["draws"], seed=inputs["seed"], bits=f"{bits}"
    )


def _baseline(out: Path, store: Workbench, **inputs: Any) -> None:
    _write(out, "baseline", dataset=inputs["dataset"])


def _trial(out: Path, store: Workbench, **inputs: Any) -> None:
    plans = json.loads((store.path(inputs["plans"]) / "arm").read_text())
    TRIALS.append(plans["arm"])
    _write(out, "trial", plans=str(inputs["plans"].digest))


def _conclude(out: Path, store: Workbench, **inputs: Any) -> None:
    rows = [
        {"arm": label.split(",")[0], "front": False, "bits_per_weight": 4.0, "kl": 0.1, "perplexity": 9.0}
        for label in inputs["trials"]
        if ", seed" in label
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(out / TABLE)
    (out / PAGE).write_text("# page\n")
    (out / "experiment.html").write_text("<h1>page</h1>")
    (out / "verdict.json").write_text('{"helps": false}')


def _calibration(out: Path, store: Workbench, **inputs: Any) -> None:
    (out / "tokens").write_text(str(inputs["calibration"].seed))


def _generate(out: Path, store: Workbench, **inputs: Any) -> None:
    (out / "tokens").write_text(f"{inputs['share']} of {inputs['tokens'].digest}")


def _balance(out: Path, store: Workbench, **inputs: Any) -> None:
    (out / "tokens").write_text(f"{inputs['samples']} of {inputs['tokens'].digest}")


def _sensitivity(out: Path, store: Workbench, **inputs: Any) -> None:
    (out / "losses").write_text(str(inputs["tokens"].digest))


def use_fake_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put fakes in the place of every stage of an experiment."""
    bodies = {
        "calibration": _calibration,
        "generate": _generate,
        "balance": _balance,
        "alpha": fakes.BODIES["alpha"],
        "sensitivity": _sensitivity,
        "rotate": fakes.BODIES["rotate"],
        "oracle": _oracle,
        "arm": _arm,
        "baseline": _baseline,
        "trial": _trial,
        "conclude": _conclude,
        "evaluate": fakes.BODIES["evaluate"],
    }
    for name, body in bodies.items():
        monkeypatch.setattr(flows.experiment_dag, name, Stage(name, body, __name__))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    folder = make_model_folder(tmp_path / "model")
    TRIALS.clear()
    use_fake_experiment(monkeypatch)
    return load_config(
        None,
        [
            f"model.path={folder}",
            "quantization.group_size=16",
            "experiment.seeds=2",
            "experiment.draws=3",
            "experiment.front=[5, 6]",
            "experiment.uniform=[int4]",
        ],
    )


def _run(config: RunConfig, store: ArtifactStore, out: Path | None = None) -> dict[str, Any]:
    request, rivals = prepare_experiment(config, store, out)
    return run_experiment(request, rivals, run_here)


def test_every_arm_is_tried_with_every_seed_and_the_front_with_one(
    config: RunConfig, store: ArtifactStore
) -> None:
    summary = _run(config, store)
    assert [*ARM_NAMES, *ARM_NAMES, "int4", *("fisher", "low", "high") * 2] == TRIALS
    labels = [stage["name"] for stage in summary["stages"]]
    assert len(set(labels)) == len(labels)
    assert {"trial low, seed 1", "trial front int4", "trial front high at 6", "conclude"} <= {
        *labels
    }
    assert {row["arm"] for row in summary["arms"]} == {*ARMS}
    out = Path("runs/experiment-model")
    assert (out / "experiment.html").is_file()
    assert json.loads((out / "summary.json").read_text()) == summary


def test_draws_of_all_seeds_make_up_what_was_asked_for(
    config: RunConfig, store: ArtifactStore
) -> None:
    summary = _run(config, store)
    found = {
        stage["name"]: json.loads((Path(stage["artifact"]) / "arm").read_text())
        for stage in summary["stages"]
        if stage["name"].startswith("arm ")
    }
    assert [found[f"arm random, seed {seed}"]["draws"] for seed in (0, 1)] == [1, 2]
    assert [found[f"arm low, seed {seed}"]["draws"] for seed in (0, 1)] == [1, 1]
    assert found["arm front low at 5"]["bits"] == "5.0"


def test_the_same_experiment_again_computes_nothing(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    _run(config, store)
    TRIALS.clear()
    again = _run(config, store, tmp_path / "other")
    assert {stage["state"] for stage in again["stages"]} == {"cached"}
    assert TRIALS == []
    assert (tmp_path / "other" / PAGE).is_file()


def test_steps_side_by_side_are_all_kept(config: RunConfig, store: ArtifactStore) -> None:
    def at_once(work: Callable[[Step], Any], steps: Sequence[Step]) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(work, steps))

    request, rivals = prepare_experiment(config, store, None)
    summary = run_experiment(request, rivals, run_here, at_once)
    labels = {stage["name"] for stage in summary["stages"]}
    assert len([label for label in labels if label.startswith("trial ")]) == len(TRIALS) == 41
    assert set(load_run(store, "last")["refs"]) == labels


def test_more_seeds_compute_only_what_is_new(config: RunConfig, store: ArtifactStore) -> None:
    _run(config, store)
    TRIALS.clear()
    options = config.experiment.model_copy(update={"seeds": 3, "draws": 5})
    _run(config.model_copy(update={"experiment": options}), store)
    assert [*ARM_NAMES] == TRIALS  # those of the third seed, which has two draws as the second has


def test_a_failed_experiment_goes_on_and_leaves_word(
    config: RunConfig, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(out: Path, store: Workbench, **inputs: Any) -> None:
        if len(TRIALS) == 4:
            raise RuntimeError("no power")
        _trial(out, store, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(flows.experiment_dag, "trial", Stage("trial", fail, __name__))
        with pytest.raises(RuntimeError, match="no power"):
            _run(config, store)
    manifest = load_run(store, run_ids(store)[0])
    assert manifest["status"] == "failed"
    assert f"trial {ARM_NAMES[3]}, seed 0" in manifest["refs"]
    TRIALS.clear()
    assert _run(config, store)["status"] == "completed"
    assert TRIALS[0] == ARM_NAMES[4]


def test_without_an_oracle_its_arm_is_left_out(
    config: RunConfig, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(out: Path, store: Workbench, **inputs: Any) -> Skipped:
        return Skipped("too large")

    monkeypatch.setattr(flows.experiment_dag, "oracle", Stage("oracle", skip, __name__))
    summary = _run(config, store)
    states = {stage["name"]: stage["state"] for stage in summary["stages"]}
    assert states["oracle, seed 0"] == "skipped"
    assert "oracle" not in TRIALS
    options = config.experiment.model_copy(update={"oracle": False})
    summary = _run(config.model_copy(update={"experiment": options}), store)
    assert "oracle, seed 0" not in [stage["name"] for stage in summary["stages"]]


@pytest.mark.parametrize(
    ("stage", "changes", "of"),
    [("balance", {"balance": 2}, "128"), ("generate", {"generated": 0.25}, "0.25")],
)
def test_windows_of_every_seed_are_chosen_and_written(
    config: RunConfig, store: ArtifactStore, stage: str, changes: dict[str, Any], of: str
) -> None:
    calibration = config.calibration.model_copy(update=changes)
    summary = _run(config.model_copy(update={"calibration": calibration}), store)
    found = {one["name"]: Path(one["artifact"]) for one in summary["stages"]}
    refs = load_run(store, "last")["refs"]
    for seed in range(2):
        drawn, used = (refs[f"{name}, seed {seed}"]["digest"] for name in ("calibration", stage))
        assert (found[f"{stage}, seed {seed}"] / "tokens").read_text() == f"{of} of {drawn}"
        assert (found[f"sensitivity, seed {seed}"] / "losses").read_text() == used


def test_a_rotated_model_is_rounded_and_the_original_is_the_yardstick(
    config: RunConfig, store: ArtifactStore
) -> None:
    rotation = config.rotation.model_copy(update={"kind": "hadamard"})
    summary = _run(config.model_copy(update={"rotation": rotation}), store)
    assert summary["stages"][3]["name"] == "rotate"
    record = next(s for s in summary["stages"] if s["name"] == "trial low, seed 0")
    told = json.loads((store.root / "keys" / "trial" / f"{record['key']}.json").read_text())
    inputs = told["ingredients"]["inputs"]
    assert inputs["model"] != inputs["original"]


def test_rivals_are_scored_on_the_same_text(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    theirs = make_model_folder(tmp_path / "theirs")
    options = config.experiment.model_copy(update={"rivals": (f"{theirs}@4.125",)})
    summary = _run(config.model_copy(update={"experiment": options}), store)
    assert f"evaluate {theirs}@4.125" in [stage["name"] for stage in summary["stages"]]


def test_what_cannot_hold_is_refused_before_anything_runs(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    low = config.experiment.model_copy(update={"front": (1.0,)})
    with pytest.raises(PlanError, match="cannot be met"):
        _run(config.model_copy(update={"experiment": low}), store)
    gone = config.experiment.model_copy(update={"rivals": (f"{tmp_path}/gone@4",)})
    with pytest.raises(UserError, match="gone"):
        _run(config.model_copy(update={"experiment": gone}), store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="was not made by alphaquant"):
        _run(config, store, tmp_path / "mine")
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("experiment.rivals=[out/theirs]", "is not FOLDER@BITS"),
        ("experiment.gammas=[]", "the list is empty"),
        ("experiment.gammas=[-1]", "is not a positive number"),
        ("experiment.uniform=[int5]", "int5"),
        ("experiment.seeds=0", "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_explained(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [assignment])


@pytest.mark.parametrize("arguments", [(), ("--experiment", "alpha", "--over", "alpha.seed=1,2")])
def test_a_sweep_is_over_keys_or_an_experiment(cli: Any, arguments: tuple[str, ...]) -> None:
    ending = cli("sweep", "--model", "model", *arguments)
    assert ending.status == 2
    assert "name one of the two" in ending.stderr
