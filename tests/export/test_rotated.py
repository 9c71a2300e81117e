from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.config import RotationConfig
from alphaquant.export.rotated import export_rotated
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import ROTATABLE, VOCABULARY, make_model

HADAMARD = RotationConfig(kind="hadamard")


def rotated_folder(source: Path, out: Path) -> Checkpoint:
    out.mkdir()
    export_rotated(RotatedCheckpoint(Checkpoint(source), HADAMARD), out)
    return Checkpoint(out)


@pytest.mark.parametrize("model_type", ROTATABLE)
@pytest.mark.parametrize(("tied", "shard"), [(False, "30kB"), (True, "30kB"), (True, "1GB")])
def test_transformers_loads_the_folder_and_gives_the_same_logits(
    tmp_path: Path, model_type: str, tied: bool, shard: str
) -> None:
    source = make_model(
        tmp_path / "m",
        model_type,
        dtype=torch.float32,
        uneven_norms=True,
        tie_word_embeddings=tied,
        shard=shard,
    )
    rotated = rotated_folder(source, tmp_path / "rotated")
    assert rotated.raw_config["tie_word_embeddings"] is False
    assert len(list(rotated.path.glob("*.safetensors"))) == len(list(source.glob("*.safetensors")))
    tokens = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (source, rotated.path)
    )
    with torch.no_grad():
        expected = first(tokens).logits
        torch.testing.assert_close(second(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(second.lm_head.weight, rotated.weight("lm_head"))


def test_what_is_no_weight_stays_as_it_was(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", shard="30kB")
    rotated = rotated_folder(source, tmp_path / "rotated")
    for path in source.glob("*.json"):
        if path.name not in ("config.json", "model.safetensors.index.json"):
            assert (rotated.path / path.name).read_bytes() == path.read_bytes()
    config = json.loads((rotated.path / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text())
    listed = json.loads((rotated.path / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in listed.items():
        assert name in load_file(rotated.path / file)
    assert set(listed) == set(rotated.entries)


def test_8_bit_floats_become_bf16(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", dtype=torch.float8_e4m3fn)
    assert Checkpoint(source).entries["lm_head.weight"].dtype == "F8_E4M3"
    rotated = rotated_folder(source, tmp_path / "rotated")
    assert rotated.entries["lm_head.weight"].dtype == "BF16"
