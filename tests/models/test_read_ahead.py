"""Exactly the tensors of the block that comes next are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.read_ahead import read_ahead
from alphaquant.models.shard import Shard
from tests.tiny import make_model


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss"])
def test_a_blocks_tensors_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    folder = make_model(tmp_path / "m", model_type, shard="30kB")
    wanted: list[str] = []
    honest = Shard.want

    def want(self: Shard, name: str) -> None:
        honest(self, name)
        wanted.append(name)

    monkeypatch.setattr(Shard, "want", want)
    checkpoint = Checkpoint(folder)
    read_ahead(checkpoint, 1)
    stored = [name for name in checkpoint.layout.files if name.startswith("model.layers.1.")]
    assert sorted(wanted) == sorted(stored)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    read_ahead(LiveCheckpoint(model, "auto"), 1)
    assert len(wanted) == len(stored)
