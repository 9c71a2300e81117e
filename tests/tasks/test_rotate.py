"""Stage rotate, end to end from a config on the shipped demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.config.file import parse_config
from alphaquant.errors import ConfigError
from alphaquant.evaluation.rivals import ROTATED
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.reporting import scores as shown
from alphaquant.store.artifacts import ArtifactStore
from flows.planned import planned_stages
from flows.preflight import prepare
from flows.runner import run

SETTINGS: dict[str, Any] = {
    "calibration": {"samples": 8, "sequence_length": 128},
    "allocation": {"policy": "uniform", "default": {"wq": "int4"}},
    "router": {"method": "kl", "epochs": 1, "batch_size": 4},
    "rotation": {"kind": "hadamard"},
    "evaluation": {"tasks": [], "sequence_length": 128, "limit": 8},
    "comparison": {"uniform": ["int8"], "methods": ["rtn"]},
    "execution": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rotated")


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    store = ArtifactStore(folder / "store")
    return run(prepare(parse_config(SETTINGS), store, folder / "out"))


@pytest.mark.slow
def test_a_rotated_run_ends_near_the_original(summary: dict[str, Any], folder: Path) -> None:
    states = {stage["name"]: stage["state"] for stage in summary["stages"]}
    assert states["rotate"] == "ran"
    perplexity = summary["scores"]["perplexity"]
    assert perplexity["quantized"] < 1.02 * perplexity["original"]
    assert 0 < summary["scores"]["kl"] < 0.02
    checkpoint = Checkpoint(folder / "out" / "checkpoint")
    assert checkpoint.raw_config["tie_word_embeddings"] is False
    assert torch.equal(checkpoint.weight("model.norm"), torch.ones(128).bfloat16())
    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.bfloat16)
    assert torch.equal(loaded.lm_head.weight, checkpoint.weight("lm_head"))


@pytest.mark.slow
def test_rivals_are_measured_against_the_model_that_was_not_rotated(
    summary: dict[str, Any], folder: Path
) -> None:
    table = pd.read_parquet(folder / "out" / "rivals.parquet").query("metric == 'kl_mean'")
    kl = dict(zip(table["model"], table["value"], strict=True))
    assert 1e-6 < kl[ROTATED] < 2e-4  # what bf16 rounding of turned weights costs
    assert kl[ROTATED] < kl["uniform int8, rtn"] < 1e-3
    assert shown.ROTATED == ROTATED
    report = (folder / "out" / "report.md").read_text()
    assert "rotated but not quantized, its mean token KL to the original is" in report
    assert f"| {ROTATED}" not in report


@pytest.mark.slow
def test_the_rotated_model_is_for_other_stages_alone(summary: dict[str, Any], folder: Path) -> None:
    assert not (folder / "out" / "model").exists()
    stage = next(stage for stage in summary["stages"] if stage["name"] == "rotate")
    facts = json.loads((Path(stage["artifact"]) / "rotation.json").read_text())
    assert facts.pop("peak_before") > 4.5
    assert facts.pop("peak_after") == pytest.approx(2.75, abs=0.05)
    assert facts == {"seed": 0, "block": 128, "hadamard": True, "heads": True}


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_other_settings_start_at_the_rotation(
    summary: dict[str, Any], folder: Path
) -> None:
    store = ArtifactStore(folder / "store")
    again = run(prepare(parse_config(SETTINGS), store, folder / "out"))
    ran = {stage["name"] for stage in again["stages"] if stage["state"] == "ran"}
    assert not ran
    other = SETTINGS | {"rotation": {"kind": "hadamard", "seed": 1}}
    planned = planned_stages(prepare(parse_config(other), store, folder / "other"))
    cached = [stage.name for stage in planned if stage.state == "cached"]
    assert cached == ["calibration", "baseline", "alpha"]


def test_what_does_not_fit_is_found_before_anything_runs(tmp_path: Path) -> None:
    config = parse_config({"rotation": {"kind": "hadamard", "block": 48}})
    with pytest.raises(ConfigError, match="block 48 does not divide the hidden size 128"):
        prepare(config, ArtifactStore(tmp_path / "store"), tmp_path / "out", dry=True)
