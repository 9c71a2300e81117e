from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.joins import joins
from tests.algorithms.test_quantize_model import CPU, windows
from tests.tiny import TYPES, WITHOUT_ROW, make_model

SECOND_NORM, ANSWER = "post_attention_layernorm", None
USUAL = {"o": (SECOND_NORM, 1.0), "down": (ANSWER, 1.0)}
OTHERS = {
    # a norm stands behind what a linear writes
    "gemma2": {"o": (SECOND_NORM, 1.0), "down": ("post_feedforward_layernorm", 1.0)},
    "gemma3_text": {"o": (SECOND_NORM, 1.0), "down": ("post_feedforward_layernorm", 1.0)},
    "olmo2": {"o": (SECOND_NORM, 1.0), "down": ("post_feedforward_layernorm", 1.0)},
    # attention and MLP side by side
    "phi": {"o": (ANSWER, 1.0), "down": (ANSWER, 1.0)},
    "cohere": {"o": (ANSWER, 1.0), "down": (ANSWER, 1.0)},
    # the stream takes half of what is written
    "granite": {"o": (SECOND_NORM, 0.5), "down": (ANSWER, 0.5)},
    # each token has a share of its own in the shared expert
    "qwen2_moe": {"o": (SECOND_NORM, 1.0), "down": (ANSWER, 1.0), "shared": None},
}


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [*TYPES, *WITHOUT_ROW])
def test_every_architecture_tells_where_its_linears_write(
    tmp_path: Path, model_type: str, dtype: torch.dtype, size: int
) -> None:
    """Also where a block adds so little to a large stream that its answer moves like what it is handed."""
    folder = make_model(tmp_path / "m", model_type, uneven_norms=True)
    checkpoint = Checkpoint(folder, architecture="generic" if model_type in WITHOUT_ROW else "auto")
    model = BlockModel(checkpoint, CPU, dtype)
    hidden = size * model.embed(windows(2), 2)[0]
    index = checkpoint.blocks - 1
    block = model.block(index)
    specs = checkpoint.block_specs(index)
    found = joins(model, block, index, specs, hidden)
    expected = OTHERS.get(model_type, USUAL)
    seen = set()
    for spec in specs:
        if spec.role not in ("o", "down"):
            assert spec.input_key not in found
            continue
        key = "shared" if "shared" in spec.name and "shared" in expected else spec.role
        seen.add(key)
        if (point := expected[key]) is None:
            assert spec.input_key not in found
            continue
        join = found[spec.input_key]
        assert join.at == point[0]
        assert join.factor == pytest.approx(point[1], rel=2e-2)
    assert seen == set(expected)
