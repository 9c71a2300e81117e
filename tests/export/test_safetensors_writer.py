from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alphaquant.errors import ModelError
from alphaquant.export.dense import export_dense
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.tensors import TensorEntry, tensor_index
from tests.tiny import make_model


def header(path: Path) -> list[tuple[str, Any]]:
    content = path.read_bytes()
    return list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).items())


def test_a_written_file_is_that_of_the_library(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        "b.weight": torch.randn(5, 7, generator=random).bfloat16(),
        "a.bias": torch.randn(3, generator=random).half(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
        "ids": torch.arange(9).view(3, 3),
        "f8": torch.randn(5, generator=random).to(torch.float8_e4m3fn),
    }
    (tmp_path / "in").mkdir()
    library = tmp_path / "in" / "model.safetensors"
    save_file(tensors, library, metadata={"format": "pt"})
    ours = tmp_path / "ours.safetensors"
    write_safetensors(ours, tensor_index(tmp_path / "in"), tensors.__getitem__)
    assert header(ours) == header(library)
    loaded = load_file(ours)
    assert set(loaded) == set(tensors)
    for name, tensor in load_file(library).items():
        assert loaded[name].dtype == tensor.dtype
        same = loaded[name].reshape(-1).view(torch.uint8) == tensor.reshape(-1).view(torch.uint8)
        assert bool(same.all()), name
    assert ours.read_bytes() == library.read_bytes()


@pytest.mark.parametrize("shard", ["1GB", "30kB"])
def test_a_dense_export_is_what_saving_each_shard_gives(tmp_path: Path, shard: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", shard=shard))
    # a head of another dtype stands for any replaced linear
    routers = {spec.name: checkpoint.weight(spec.name).float() * 2 for spec in checkpoint.specs}
    out = tmp_path / "out"
    out.mkdir()
    export_dense(checkpoint, [], routers, out)
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    assert (len(files) > 1) == (shard == "30kB")
    for file in files:
        expected = {
            name: (routers[linear].to(tensor.dtype) if linear in routers else tensor)
            for name, tensor in load_file(file).items()
            for linear in [name.removesuffix(".weight")]
        }
        save_file(expected, tmp_path / file.name, metadata={"format": "pt"})
        assert (out / file.name).read_bytes() == (tmp_path / file.name).read_bytes()


def test_another_shape_or_an_unknown_dtype_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(ModelError, match=r"tensor w has shape \[3\], m has \[2\]"):
        write_safetensors(out, {"w": TensorEntry(Path("m"), "F32", (2,))}, lambda _: torch.ones(3))
    with pytest.raises(ModelError, match="dtype F4; allowed: F64"):
        write_safetensors(out, {"w": TensorEntry(Path("m"), "F4", (2,))}, lambda _: torch.ones(2))
