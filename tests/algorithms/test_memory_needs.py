"""The formulas against what a process takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alphaquant.algorithms.memory_needs import needs_of
from alphaquant.algorithms.sensitivity import _head_gradient
from alphaquant.config import QuantizationConfig
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.footprint import window_bytes
from alphaquant.models.observe import output_gradients
from tests.allocations import most_allocated
from tests.tiny import make_model

CPU = torch.device("cpu")
LENGTH = 256


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"intermediate_size": 1024}),
        ("olmoe", {"intermediate_size": 256, "num_experts": 16, "num_experts_per_tok": 8}),
        ("gemma2", {"intermediate_size": 1024}),
    ],
)
def test_a_backward_pass_takes_no_more_than_the_formulas_say(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    wide: dict[str, Any] = {"vocab_size": 20_000, "hidden_size": 256, "head_dim": 64}
    wide |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LENGTH}
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type, **wide, **changes))
    needs = needs_of(checkpoint, 4, LENGTH, QuantizationConfig(method="rtn"), 4, 4)
    model = BlockModel(checkpoint, CPU, torch.float32)
    tokens = torch.randint(256, (1, LENGTH), generator=torch.Generator().manual_seed(0))

    def embed() -> None:
        model.embed(tokens, 1)
        model.release_embedding()

    assert 0.5 * needs.embedding < most_allocated(embed) < needs.embedding + needs.window
    [hidden] = model.embed(tokens, 1)
    model.release_embedding()

    def begin() -> None:
        _head_gradient(model, model.head(), hidden, 0)

    assert 0.5 * needs.head < most_allocated(begin) < needs.head
    block, specs = model.block(0, narrow=True), checkpoint.block_specs(0)

    def backward() -> None:
        start = hidden.repeat(3, 1, 1).requires_grad_(True)
        with output_gradients(model, block, 0, specs), torch.enable_grad():
            out = model.run(block, 0, start)
            torch.autograd.grad(out, start, out.detach())

    assert 0.4 * 3 * needs.backward < most_allocated(backward) < 3 * needs.backward


def test_scores_that_attention_keeps_are_counted(tmp_path: Path) -> None:
    kept, fused = (
        Checkpoint(make_model(tmp_path / model_type, model_type, intermediate_size=64))
        for model_type in ("gemma2", "llama")
    )
    assert kept.config.num_attention_heads == fused.config.num_attention_heads
    lengths = (64, 128)
    growth = [
        window_bytes(checkpoint, lengths[1], 4) - 2 * window_bytes(checkpoint, lengths[0], 4)
        for checkpoint in (kept, fused)
    ]
    heads = kept.config.num_attention_heads
    assert growth == [2 * 4 * heads * (128**2 - 2 * 64**2), 0]
