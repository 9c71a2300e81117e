"""Stage tune, end to end from a config on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alphaquant.config.file import parse_config
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.store.artifacts import ArtifactStore
from flows.dag import quantize_only
from flows.planned import planned_stages
from flows.preflight import prepare
from flows.publish import publish_checkpoint
from flows.runner import Request, run
from tests.tiny import make_model


def request(root: Path, **changes: Any) -> Request:
    settings = {"tune": "model", "group_size": 16, "tune_steps": 4, "tune_model_steps": 20}
    config = parse_config(
        {
            "model": {"path": str(root / "model")},
            "calibration": {"samples": 32, "sequence_length": 48},
            "allocation": {"policy": "uniform", "default": {"wq": "int3"}},
            "quantization": settings | changes,
            "execution": {"device": "cpu"},
        }
    )
    return prepare(config, ArtifactStore(root / "store"), root / "out", stages=quantize_only)


def states(summary: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in summary["stages"]}


@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_tuned_scales_and_norms_reach_the_checkpoint(tmp_path: Path, model_type: str) -> None:
    make_model(tmp_path / "model", model_type)
    summary = run(request(tmp_path), hand_over=publish_checkpoint)
    assert states(summary)["tune"] == "ran"
    folder = next(Path(s["artifact"]) for s in summary["stages"] if s["name"] == "tune")
    facts = json.loads((folder / "model_tuning.json").read_text())
    assert facts["kl_after"] < facts["kl_before"]
    assert 0 < facts["steps"] <= 20
    original, out = Checkpoint(tmp_path / "model"), Checkpoint(tmp_path / "out")
    for name in ("model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm"):
        assert not torch.equal(out.weight(name), original.weight(name))
    again = states(run(request(tmp_path), hand_over=publish_checkpoint))
    assert again.pop("generate") == again.pop("balance") == "skipped"
    assert set(again.values()) == {"cached"}


def test_blocks_that_were_tuned_one_by_one_are_not_tuned_again(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    run(request(tmp_path, tune="block"), hand_over=publish_checkpoint)
    planned = {stage.name: stage.state for stage in planned_stages(request(tmp_path))}
    assert planned["quantize"] == "cached"
    assert planned["tune"] == "run"


def test_blocks_that_nothing_improves_are_exported_as_they_were(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    summary = run(request(tmp_path, tune_model_rate=9.0), hand_over=publish_checkpoint)
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert stages["tune"]["state"] == "skipped"
    assert "held-out windows" in stages["tune"]["reason"]
    assert stages["export"]["state"] == "ran"
    original, out = Checkpoint(tmp_path / "model"), Checkpoint(tmp_path / "out")
    norm = "model.layers.0.input_layernorm"
    assert torch.equal(out.weight(norm), original.weight(norm))
    assert set(states(run(request(tmp_path, tune_model_rate=9.0), hand_over=publish_checkpoint)).values()) == {
        "cached", "skipped"
    }  # fmt: skip
