"""Rows against published models, by names and shapes alone: transformers builds them without memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from alphaquant.models.fused import layout_of
from alphaquant.models.native import teach_transformers
from alphaquant.models.rows import architecture_of
from alphaquant.models.tensors import TensorEntry
from tests.models.published import BILLIONS, PUBLISHED


def shapes_on_disk(folder: Path, config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """What transformers would save of a model, without its weights."""
    teach_transformers(str(config["model_type"]))
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    saved = revert_weight_conversion(model, model.state_dict())
    entries = {n: TensorEntry(folder, "BF16", tuple(tensor.shape)) for n, tensor in saved.items()}
    layout = layout_of(architecture_of(config), entries)
    return layout.shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_row_finds_every_matrix_of_a_published_model(tmp_path: Path, name: str) -> None:
    config = PUBLISHED[name]
    architecture = architecture_of(config)
    # one block more than the dense ones says all about names
    shown = min(int(config["num_hidden_layers"]), int(config.get("first_k_dense_replace", 0)) + 1)
    shapes = shapes_on_disk(tmp_path, config | {"num_hidden_layers": shown})
    specs = architecture.linears(config | {"num_hidden_layers": shown}, shapes)
    matrices = {n for n, shape in shapes.items() if len(shape) == 2 and "embed_tokens" not in n}
    assert {f"{spec.name}.weight" for spec in specs} == matrices
    assert all(shapes[f"{spec.name}.weight"] == (spec.rows, spec.cols) for spec in specs)
    # every further block is like the last one
    last = f"model.layers.{shown - 1}."
    per_block = sum(math.prod(shape) for n, shape in shapes.items() if n.startswith(last))
    more = int(config["num_hidden_layers"]) - shown
    total = sum(math.prod(shape) for shape in shapes.values()) + more * per_block
    assert total / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)
