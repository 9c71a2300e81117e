"""Pinned memory is asked for only for a GPU, and what cannot be pinned is read all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alphaquant.demo import demo_model_path
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.read_ahead import in_order
from alphaquant.pinned import buffer, for_a_gpu, to_host


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each empty tensor was to be pinned; none can be."""
    seen: list[bool] = []
    honest = torch.empty

    def empty(*shape: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        seen.append(pin_memory)
        if pin_memory:
            raise RuntimeError("no pinned memory is left")
        return honest(*shape, **more)

    monkeypatch.setattr(torch, "empty", empty)
    return seen


def test_it_is_wanted_while_the_context_is_open(asked: list[bool]) -> None:
    buffer((2, 3), torch.bfloat16)
    assert asked == [False]
    with for_a_gpu():
        found = buffer((2, 3), torch.bfloat16)
    assert asked == [False, True, False]
    assert (found.shape, found.dtype) == (torch.Size([2, 3]), torch.bfloat16)
    buffer((2, 3), torch.bfloat16)
    assert asked[-1:] == [False]


def test_a_checkpoint_is_read_into_it_for_a_gpu_alone(asked: list[bool]) -> None:
    checkpoint = Checkpoint(Path(demo_model_path()))
    names = [f"{spec.name}.weight" for spec in checkpoint.block_specs(0)[:6]]
    here = list(in_order(checkpoint.tensor, names, torch.device("cpu")))
    assert not any(asked)
    there = list(in_order(checkpoint.tensor, names, torch.device("cuda")))
    assert any(asked)
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_what_is_on_the_cpu_stays_itself() -> None:
    tensor = torch.arange(3)
    assert to_host(tensor) is tensor
