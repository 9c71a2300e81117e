"""Jobs: what a worker reads is what the run meant, or it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flows.dag
from alphaquant.config import ExecutionConfig, ModelConfig, QuantizationConfig
from alphaquant.errors import DataError, ModelError, StoreError
from alphaquant.models.resolve import ModelRef, resolve_model
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.stage import Stage
from flows.contents import file_digests
from flows.experiment_dag import STAGES
from flows.jobs import decoded, encoded, read_job, write_job
from tests.flows.fakes import make_model_folder

REF = ArtifactRef(kind="plan", digest="ab" * 32, size=3)


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return resolve_model(ModelConfig(path=str(make_model_folder(tmp_path / "model"))))


@pytest.fixture
def inputs(model: ModelRef) -> dict[str, Any]:
    return {
        "model": model,
        "plan": REF,
        "tokens": None,
        "tables": {"alpha": REF, "routers": None},
        "formats": ("int4", "mxfp4"),
        "quantization": QuantizationConfig(group_size=64),
        "execution": ExecutionConfig(batch_size=2),
    }


def _stage(monkeypatch: pytest.MonkeyPatch, module: str = __name__) -> Stage:
    stage = Stage("quantize", lambda out, store, **_: None, module)
    monkeypatch.setattr(flows.dag, "quantize", stage)
    return stage


def test_inputs_come_back_with_their_types(inputs: dict[str, Any]) -> None:
    back = decoded(encoded(inputs))
    assert back == inputs | {"formats": ["int4", "mxfp4"]}
    assert type(back["quantization"]) is QuantizationConfig


def test_stages_of_experiments_are_known_to_workers_too(
    store: ArtifactStore, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("trial", lambda out, store, **_: None, __name__)
    monkeypatch.setitem(STAGES, "trial", stage)
    assert read_job(store, "trial", write_job(store, stage, inputs)).stage is stage


def test_a_worker_reads_the_job_that_was_written(
    store: ArtifactStore, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(monkeypatch)
    key = write_job(store, stage, inputs)
    job = read_job(store, "quantize", key)
    assert job.stage is stage
    assert stage.ingredients(job.inputs) == stage.ingredients(inputs)
    assert job.inputs["execution"].batch_size == 2


def test_a_worker_with_another_store_says_so(tmp_path: Path, store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="ALPHAQUANT_STORE"):
        read_job(store, "quantize", "0" * 40)


def test_a_worker_with_other_code_refuses_and_names_the_module(
    store: ArtifactStore, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_job(store, _stage(monkeypatch), inputs)
    _stage(monkeypatch, "tests.flows.fakes")
    with pytest.raises(StoreError, match=r"code changed: alphaquant.*Install the same version"):
        read_job(store, "quantize", key)


def test_a_worker_that_sees_another_model_refuses(
    store: ArtifactStore, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, model: ModelRef
) -> None:
    key = write_job(store, _stage(monkeypatch), inputs)
    config = Path(model.path) / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ModelError, match="other files on this worker"):
        read_job(store, "quantize", key)


def test_a_hub_model_is_looked_up_by_its_id(
    model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(config: ModelConfig, digests: Path | None) -> ModelRef:
        asked.append(config)
        return model

    monkeypatch.setattr("flows.jobs.resolve_model", resolve)
    far = model.model_copy(
        update={
            "path": "/elsewhere/snapshot",
            "source": ModelConfig(path="owner/name", revision="v1"),
        }
    )
    assert decoded(encoded(far)) == model
    assert asked == [ModelConfig(path="owner/name", revision="v1")]


def test_a_worker_that_sees_another_text_refuses(
    store: ArtifactStore,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("as the run saw it")
    stage = _stage(monkeypatch)
    files = file_digests([str(text)])
    key = write_job(store, stage, inputs | {"files": files})
    assert read_job(store, "quantize", key).inputs["files"] == files
    text.write_text("as the worker sees it")
    with pytest.raises(DataError, match=r"text\.txt is missing on this worker, or differs"):
        read_job(store, "quantize", key)


def test_where_it_runs_is_in_no_key(
    store: ArtifactStore, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(monkeypatch)
    elsewhere = ExecutionConfig(where="pool", pool="h200", device="cuda:3")
    assert write_job(store, stage, inputs) == write_job(
        store, replace(stage), inputs | {"execution": elsewhere}
    )
