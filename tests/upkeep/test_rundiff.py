"""Two runs side by side, from manifests and key records as runs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.runs import save_run
from alphaquant.store.stage import StageResult
from alphaquant.upkeep.history import RunManifest, read_run, recent_runs
from alphaquant.upkeep.rundiff import RunDiff, diff_runs
from tests.store.project import Project


def _save(
    store: ArtifactStore,
    run_id: str,
    results: dict[str, StageResult],
    *,
    seconds: float = 1.0,
    **more: Any,
) -> None:
    """As a run saves itself, every stage having taken the same `seconds`: what was measured may be equal by chance."""
    entries = [
        {"name": r.name, "state": r.state, "reason": r.reason, "seconds": seconds, "key": r.key}
        for r in results.values()
    ]
    refs = {name: result.ref.model_dump() for name, result in results.items() if result.ref}
    manifest = {"run_id": run_id, "status": "completed", "model": "toy", "stages": entries}
    save_run(store, manifest | {"refs": refs} | more)


@pytest.fixture
def project(tmp_path: Path, store: ArtifactStore) -> Project:
    """A project with two runs: the second with other bits and an edited helper."""
    made = Project(tmp_path, store)
    config = {"quantization": {"bits": 4, "method": "gptq"}, "tasks": ["piqa"]}
    scores = {"kl": 0.5, "tasks": {"piqa": {"acc": {"quantized": 0.5}}}}
    told = {"config": config, "environment": {"torch": "2.9"}, "bits_per_weight": 4.0}
    _save(store, "20250101-a", made.run(), scores=scores, **told)
    made.edit("steps", "0 * 1", "1 * 0")
    config = config | {"quantization": {"bits": 3, "method": "gptq"}}
    told |= {"config": config, "bits_per_weight": 3.0}
    scores = scores | {"kl": 0.75}
    _save(store, "20250102-b", made.run(bits=3), seconds=2.0, scores=scores, **told)
    return made


def _two(store: ArtifactStore) -> tuple[RunManifest, RunManifest]:
    return read_run(store, "last~1"), read_run(store, "last")


def test_only_what_differs_is_told(project: Project) -> None:
    diff = diff_runs(project.store, *_two(project.store))
    assert diff.config == {"quantization.bits": (4, 3)}
    assert diff.scores == {"kl": (0.5, 0.75)}
    assert diff.environment == {}
    assert set(diff.facts) == {"bits per weight", "seconds"}
    assert set(diff.stages) == {"quantize", "evaluate"}


def test_a_stage_tells_inputs_code_artifact_and_how_long_both_took(project: Project) -> None:
    a, b = _two(project.store)
    quantize = diff_runs(project.store, a, b).stages["quantize"]
    assert quantize.inputs == {"bits": ("4", "3")}
    assert quantize.code == (f"{project.package}.steps",)
    assert quantize.artifact == (a.refs["quantize"].digest, b.refs["quantize"].digest)
    assert quantize.state == ("ran", "ran")
    assert all(seconds > 0 for seconds in quantize.seconds)
    evaluate = diff_runs(project.store, a, b).stages["evaluate"]
    assert set(evaluate.inputs) == {"quantized"}
    assert evaluate.code == ()


def test_what_is_equal_can_be_asked_for(project: Project) -> None:
    diff = diff_runs(project.store, *_two(project.store), everything=True)
    assert diff.config["quantization.method"] == ("gptq", "gptq")
    assert diff.environment == {"torch": ("2.9", "2.9")}
    assert diff.scores["tasks.piqa.acc.quantized"] == (0.5, 0.5)
    assert set(diff.stages) == {"alpha", "quantize", "evaluate"}


def test_a_run_does_not_differ_from_itself(project: Project) -> None:
    run = read_run(project.store, "last")
    diff = diff_runs(project.store, run, run)
    assert diff == RunDiff({}, {}, {}, {}, {})


def test_a_stage_that_one_run_did_not_reach_has_no_value_there(
    project: Project, store: ArtifactStore
) -> None:
    _save(store, "20250103-c", {})
    quantize = diff_runs(store, *_two(store)).stages["quantize"]
    assert quantize.state == ("ran", None)
    assert quantize.artifact[1] is None


def test_without_key_records_the_artifacts_still_differ(project: Project) -> None:
    for path in (project.store.root / "keys" / "quantize").iterdir():
        path.unlink()
    quantize = diff_runs(project.store, *_two(project.store)).stages["quantize"]
    assert (quantize.recorded, quantize.differs, quantize.inputs) == (False, True, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"run_id": "20250103-c"}', "null"])
def test_a_damaged_manifest_is_said_to_be_one_and_others_are_read(
    project: Project, text: str
) -> None:
    (project.store.root / "runs" / "20250103-c.json").write_text(text)
    runs, damaged = recent_runs(project.store, 10)
    assert [run.run_id for run in runs] == ["20250102-b", "20250101-a"]
    assert damaged == ["20250103-c"]
    with pytest.raises(UserError, match="manifest of run 20250103-c"):
        read_run(project.store, "20250103-c")
