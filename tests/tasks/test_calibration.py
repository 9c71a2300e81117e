"""Stage calibration on tiny models: the windows it draws, and those it chooses by the experts they reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from alphaquant.algorithms.balance import expert_loads, idlest_share
from alphaquant.config import CalibrationConfig, ExecutionConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.resolve import ModelRef
from alphaquant.progress import reporting_to
from tasks.calibration import calibration
from tasks.inputs import TOKENS
from tests.notes import Notes
from tests.tiny import make_model


def drawn(model: Path, folder: Path, balance: int) -> torch.Tensor:
    """Six windows of 16 tokens for `model`, written into `folder`."""
    text = model.parent / "text.txt"
    words = [f"{number * number} is the square of {number}." for number in range(400)]
    text.write_text("\n".join(words), encoding="utf-8")
    settings = {"dataset": str(text), "samples": 6, "sequence_length": 16, "balance": balance}
    folder.mkdir()
    store: Any = None  # nothing is read from it
    calibration.body(
        folder,
        store,
        model=ModelRef(path=str(model), name="m", model_type="olmoe", digest="0" * 64),
        calibration=CalibrationConfig(**settings),
        files={},
        execution=ExecutionConfig(device="cpu", batch_size=4),
    )
    return load_file(folder / TOKENS)["tokens"]


def test_a_choice_among_more_windows_evens_out_the_experts_loads(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "olmoe")
    plain, chosen = (drawn(model, tmp_path / str(n), n) for n in (1, 8))
    assert chosen.shape == plain.shape == (6, 16)
    assert len(chosen.unique(dim=0)) == 6
    even, first = (
        idlest_share(expert_loads(Checkpoint(model), tokens, torch.device("cpu"), 4))
        for tokens in (chosen, plain)
    )
    assert even > first


def test_a_dense_model_keeps_the_windows_drawn_first_and_says_so(tmp_path: Path) -> None:
    model, notes = make_model(tmp_path / "model", "llama"), Notes()
    plain = drawn(model, tmp_path / "1", 1)
    with reporting_to(notes):
        same = drawn(model, tmp_path / "8", 8)
    assert torch.equal(plain, same)
    assert any("the model is dense" in line for line in notes.said)
