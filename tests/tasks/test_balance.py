"""Stages calibration and balance on tiny models: windows that are drawn, and those chosen by the experts they reach."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from alphaquant.algorithms.balance import expert_loads, idlest_share
from alphaquant.config import CalibrationConfig, ExecutionConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.resolve import ModelRef
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import StageResult, run_stage
from tasks.balance import balance
from tasks.calibration import calibration
from tasks.inputs import TOKENS
from tests.notes import Notes
from tests.tiny import make_model

SAMPLES = 6


def drawn(model: Path, store: ArtifactStore, pool: int) -> StageResult:
    """Windows of 16 tokens: SAMPLES, or up to `pool` times as many."""
    text = model.parent / "text.txt"
    words = [f"{number * number} is the square of {number}." for number in range(400)]
    text.write_text("\n".join(words), encoding="utf-8")
    config = CalibrationConfig(dataset=str(text), samples=SAMPLES, sequence_length=16, balance=pool)
    return run_stage(calibration, store, {"model": ref(model), "calibration": config, "files": {}})


def chosen(model: Path, store: ArtifactStore, pool: int) -> torch.Tensor:
    """SAMPLES windows of them."""
    inputs = {
        "model": ref(model),
        "tokens": drawn(model, store, pool).ref,
        "samples": SAMPLES,
        "execution": ExecutionConfig(device="cpu", batch_size=4),
    }
    return windows(store, run_stage(balance, store, inputs))


def ref(model: Path) -> ModelRef:
    return ModelRef(path=str(model), name="m", model_type=model.name, digest="0" * 64)


def windows(store: ArtifactStore, result: StageResult) -> torch.Tensor:
    assert result.ref is not None
    return load_file(store.place(result.ref) / TOKENS)["tokens"]


def test_a_choice_among_more_windows_evens_out_the_experts_loads(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model = make_model(tmp_path / "olmoe", "olmoe")
    first, pool = (windows(store, drawn(model, store, size)) for size in (1, 8))
    assert first.shape == (SAMPLES, 16)
    assert pool.shape == (8 * SAMPLES, 16)
    assert torch.equal(pool[:SAMPLES], first)
    best = chosen(model, store, 8)
    assert best.shape == first.shape
    assert len(best.unique(dim=0)) == SAMPLES
    even, uneven = (
        idlest_share(expert_loads(Checkpoint(model), tokens, torch.device("cpu"), 4))
        for tokens in (best, first)
    )
    assert even > uneven


def test_a_dense_model_keeps_the_windows_drawn_first_and_says_so(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model, notes = make_model(tmp_path / "llama", "llama"), Notes()
    with reporting_to(notes):
        same = chosen(model, store, 8)
    assert torch.equal(same, windows(store, drawn(model, store, 1)))
    assert any("the model is dense" in line for line in notes.said)


def test_no_more_windows_than_are_wanted_are_all_taken(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model = make_model(tmp_path / "olmoe", "olmoe")
    assert torch.equal(chosen(model, store, 1), windows(store, drawn(model, store, 1)))
