"""Exactly the tensors of the block that comes next are asked for, and those for a GPU are read by several threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.read_ahead import in_order, read_ahead
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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensors_come_in_the_order_of_their_names(device: str) -> None:
    names = [str(number) for number in range(60)]

    def read(name: str) -> Tensor:
        return torch.tensor(int(name))

    found = in_order(read, names, torch.device(device))
    assert [int(tensor) for tensor in found] == list(range(60))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_cannot_be_read_is_told_where_it_is_due(device: str) -> None:
    def read(name: str) -> Tensor:
        if name == "3":
            raise OSError("cannot read 3")
        return torch.zeros(1)

    coming = in_order(read, [str(number) for number in range(30)], torch.device(device))
    assert [next(coming) for _ in range(3)]
    with pytest.raises(OSError, match="read 3"):
        next(coming)


def test_tensors_on_the_way_are_few() -> None:
    begun: list[str] = []

    def read(name: str) -> Tensor:
        begun.append(name)
        return torch.zeros(1)

    coming = in_order(read, [str(number) for number in range(100)], torch.device("cuda"))
    next(coming)
    assert len(begun) < 20
    assert len(list(coming)) == 99
