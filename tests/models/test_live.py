from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from tests.tiny import TYPES, VOCABULARY, make_model


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_in_memory_has_the_names_and_weights_of_its_folder(
    tmp_path: Path, model_type: str
) -> None:
    folder = make_model(tmp_path / "m", model_type)
    disk = Checkpoint(folder)
    live = LiveCheckpoint(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
    assert live.specs == disk.specs
    assert set(live.entries) == set(disk.entries)
    for name in disk.entries:
        assert torch.equal(live.tensor(name), disk.tensor(name)), name
        for checkpoint in (live, disk):
            assert checkpoint.dtype(name) == checkpoint.tensor(name).dtype


def test_replacing_an_expert_changes_the_model(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m", "mixtral")).eval()
    live = LiveCheckpoint(model)
    tokens = torch.arange(20)[None] % VOCABULARY
    with torch.no_grad():
        before = model(tokens).logits
        for spec in live.specs:
            if spec.role == "down":
                live.replace(spec.name, torch.zeros(spec.rows, spec.cols))
        after = model(tokens).logits
    assert not torch.allclose(before, after)
    assert not model.model.layers[0].mlp.experts.down_proj.any()
