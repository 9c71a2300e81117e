"""The dry run says beforehand what the run then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.planning import Pending, PlannedStage, plan_stage, spare_unread
from alphaquant.store.records import load_record, save_record
from alphaquant.store.stage import Stage, Workbench, run_stage
from tests.store.project import Project, ran


def _plan(project: Project, bits: int = 4, force: tuple[str, ...] = ()) -> dict[str, PlannedStage]:
    planned: dict[str, PlannedStage] = {}

    def call(name: str, **inputs: object) -> ArtifactRef | Pending | None:
        planned[name] = plan_stage(project.stage(name), project.store, inputs, force=name in force)
        return planned[name].out

    with project.fresh_code():
        alpha = call("alpha", model=project.model)
        quantized = call("quantize", alpha=alpha, bits=bits, execution={"device": "cpu"})
        call("evaluate", quantized=quantized, tasks=("piqa",))
    return planned


def _states(planned: dict[str, PlannedStage]) -> list[str]:
    return [stage.state for stage in planned.values()]


@pytest.fixture
def project(tmp_path: Path, store: ArtifactStore) -> Project:
    """A project that has run once."""
    made = Project(tmp_path, store)
    made.run()
    return made


def test_before_the_first_run_everything_runs(tmp_path: Path, store: ArtifactStore) -> None:
    planned = _plan(Project(tmp_path, store))
    assert _states(planned) == ["run", "run", "run"]
    assert {stage.reason for stage in planned.values()} == {"first run"}
    assert not store.root.exists()


def test_after_a_run_nothing_runs(project: Project) -> None:
    assert _states(_plan(project)) == ["cached", "cached", "cached"]


def test_what_follows_a_stage_that_runs_is_unknown_and_its_last_time_is_told(
    project: Project,
) -> None:
    planned = _plan(project, bits=3)
    assert _states(planned) == ["cached", "run", "unknown"]
    assert planned["quantize"].reason == "changed: bits 4 -> 3"
    assert planned["evaluate"].reason == "waits for quantize: cached if nothing changes there"
    assert planned["evaluate"].seconds is not None


def test_a_known_artifact_that_is_gone_still_lets_what_follows_be_planned(project: Project) -> None:
    ref = project.run()["quantize"].ref
    assert ref is not None
    shutil.rmtree(project.store.path(ref))
    planned = _plan(project)
    assert _states(planned) == ["cached", "run", "cached"]
    assert planned["quantize"].reason == "artifact missing"
    assert ran(project.run()) == ["quantize"]


def test_a_forced_stage_runs_and_what_follows_is_planned_by_its_known_result(
    project: Project,
) -> None:
    planned = _plan(project, force=("quantize",))
    assert _states(planned) == ["cached", "run", "cached"]
    assert planned["quantize"].reason == "forced"


def _planned(name: str, state: str, *reads: str, removed: str | None = None) -> PlannedStage:
    return PlannedStage(
        name,
        state,  # type: ignore[arg-type]
        "why",
        1.0,
        None,
        reads=frozenset(reads),
        removed=removed,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("export", "evaluate", "quantize"),
    [
        ("cached", "cached", "cached"),
        ("cached", "run", "cached"),
        ("run", "cached", "run"),
        ("unknown", "unknown", "run"),
        ("skipped", "skipped", "cached"),
    ],
)
def test_removed_parts_are_made_again_only_for_a_stage_that_reads_them(
    export: str, evaluate: str, quantize: str
) -> None:
    planned = [
        _planned("quantize", "run", removed="parts"),
        _planned("export", export, "quantize"),
        _planned("evaluate", evaluate, "export"),
    ]
    assert _by_name(spare_unread(planned))["quantize"] == quantize


def test_a_removed_artifact_that_is_handed_over_is_made_again() -> None:
    planned = [_planned("alpha", "run", removed="whole"), _planned("allocate", "cached", "alpha")]
    assert _by_name(spare_unread(planned)) == {"alpha": "run", "allocate": "cached"}
    assert _by_name(spare_unread(planned, ["alpha"])) == {"alpha": "cached", "allocate": "cached"}


def test_what_a_removed_artifact_was_made_of_is_needed_when_it_is_made_again() -> None:
    planned = [
        _planned("calibration", "run", removed="whole"),
        _planned("quantize", "run", "calibration", removed="whole"),
        _planned("export", "cached", "quantize"),
    ]
    assert _by_name(spare_unread(planned, ["calibration"]))["calibration"] == "run"
    spared = _by_name(spare_unread(planned, ["calibration", "quantize"]))
    assert spared == dict.fromkeys(("calibration", "quantize", "export"), "cached")


def _by_name(planned: list[PlannedStage]) -> dict[str, str]:
    return {stage.name: stage.state for stage in planned}


def _blocks(out: Path, bench: Workbench) -> None:
    cache = bench.block_cache()
    for index in range(2):
        if cache.get(index, {}) is None:
            cache.put(index, {}, lambda to, i=index: _write(to / "block", f"block {i}"))  # type: ignore[misc]
    _write(out / "refs.json", json.dumps(cache.as_refs()))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_parts_that_are_gone_are_told_from_parts_that_are_damaged(store: ArtifactStore) -> None:
    stage = Stage("toy", _blocks, __name__)
    first = run_stage(stage, store, {})
    assert first.ref is not None
    one, other = store.children(first.ref).values()
    shutil.rmtree(store.path(one))
    planned = plan_stage(stage, store, {})
    assert (planned.state, planned.removed, planned.units) == ("run", "parts", 2)
    assert planned.reason == "artifact incomplete: block-0000 is missing"
    (store.path(other) / "block").unlink()
    assert plan_stage(stage, store, {}).removed is None
    shutil.rmtree(store.path(first.ref))
    assert plan_stage(stage, store, {}).removed == "whole"


def test_a_resumed_stage_is_expected_to_take_its_whole_time(store: ArtifactStore) -> None:
    stage = Stage("toy", _blocks, __name__)
    first = run_stage(stage, store, {})
    record = load_record(store, "toy", first.key)
    assert record is not None
    save_record(store, record.model_copy(update={"units": 2, "units_ran": 1, "seconds": 3.0}))
    assert plan_stage(stage, store, {}).seconds == 6.0


def test_a_pending_artifact_is_found_inside_a_dict_of_inputs(project: Project) -> None:
    with project.fresh_code():
        planned = plan_stage(
            project.stage("evaluate"), project.store, {"tables": {"plan": Pending("allocate")}}
        )
    assert planned.state == "unknown"
    assert "allocate" in planned.reason


def test_a_stage_of_edited_code_runs_whatever_it_will_be_given(project: Project) -> None:
    project.edit("steps", "0 * 1", "1 * 0")  # read by quantize
    project.edit("alpha", "len(model.read())", "len(model.read()) + 0")
    planned = _plan(project)
    assert _states(planned) == ["run", "run", "unknown"]
    assert planned["quantize"].reason == f"code changed: {project.package}.steps; waits for alpha"
