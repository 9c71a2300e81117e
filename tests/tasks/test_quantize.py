"""Stage quantize, end to end from the command line on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alphaquant.config.file import parse_config
from alphaquant.store.artifacts import ArtifactStore
from flows.dag import quantize_only
from flows.preflight import prepare
from flows.publish import publish_checkpoint
from flows.runner import run
from tests.tiny import make_model


@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_rounding_to_nearest_needs_neither_text_nor_tokenizer(
    tmp_path: Path, model_type: str
) -> None:
    model = make_model(tmp_path / "model", model_type)
    for path in model.glob("*token*"):
        path.unlink()
    config = parse_config(
        {
            "model": {"path": str(model)},
            "calibration": {"dataset": "missing.txt"},
            "allocation": {"policy": "uniform", "default": {"wq": "int4"}},
            "quantization": {"method": "rtn", "group_size": 16},
            "execution": {"device": "cpu"},
        }
    )
    store, out = ArtifactStore(tmp_path / "store"), tmp_path / "out"
    summary = run(prepare(config, store, out, stages=quantize_only), hand_over=publish_checkpoint)
    states = {stage["name"]: stage["state"] for stage in summary["stages"]}
    assert states == dict.fromkeys(["allocate", "quantize", "export"], "ran") | {
        "calibration": "skipped"
    }
    assert json.loads((out / "config.json").read_text())["model_type"] == model_type
    assert list(out.glob("*.safetensors"))
