"""The dry run says beforehand what the run then does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.planning import Pending, PlannedStage, plan_stage
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


def test_a_pending_artifact_is_found_inside_a_dict_of_inputs(project: Project) -> None:
    with project.fresh_code():
        planned = plan_stage(
            project.stage("evaluate"), project.store, {"tables": {"plan": Pending("allocate")}}
        )
    assert planned.state == "unknown"
    assert "allocate" in planned.reason
