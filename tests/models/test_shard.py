"""A safetensors file as the library reads it, in memory that is given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alphaquant.errors import ModelError
from alphaquant.models.shard import Shard
from alphaquant.resident import give_back, resident


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(5, 3, generator=generator).bfloat16(),
        "experts": torch.randn(4, 3, 2, generator=generator),
        "codes": torch.arange(7, dtype=torch.uint8),
        "scale": torch.tensor(2.5, dtype=torch.float64),
        "fp8": torch.randn(6, generator=generator).to(torch.float8_e4m3fn),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_tensors_are_what_safetensors_reads(file: Path) -> None:
    shard, expected = Shard(file), load_file(file)
    assert shard.entries.keys() == expected.keys()
    for name, tensor in expected.items():
        found = shard.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found.float(), tensor.float())
    for part in range(4):
        assert torch.equal(shard.tensor("experts", part), expected["experts"][part])


def test_a_header_that_disagrees_with_itself_is_named(file: Path) -> None:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["half"]["shape"] = [5, 2]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(ModelError, match=r"damaged at tensor half: 30 bytes for BF16 \[5, 2\]"):
        Shard(file).tensor("half")


def test_a_file_that_shrinks_while_it_is_open_is_named(file: Path) -> None:
    shard = Shard(file)
    with file.open("r+b") as handle:
        handle.truncate(shard.entries["experts"].begin + 5)
    with pytest.raises(ModelError, match="inside a tensor"):
        shard.tensor("experts")
    with pytest.raises(ModelError, match="holds no tensor other"):
        shard.tensor("other")


@pytest.mark.skipif(resident() is None, reason="the system does not say what is in memory")
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    size = 16 << 20
    save_file({str(n): torch.zeros(size, dtype=torch.uint8) for n in range(8)}, tmp_path / "b")
    shard = Shard(tmp_path / "b")
    shard.tensor("0")
    give_back()
    before = resident() or 0
    for name in shard.entries:
        assert not shard.tensor(name).any()
    give_back()
    assert (resident() or 0) - before < size
