"""Folders as DeepSeek-V3 and Qwen3's FP8 releases are published, and their bf16 twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
_LARGEST = 448.0
_KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj")


def settings(block: tuple[int, int] = (128, 128), **changes: Any) -> dict[str, Any]:
    """A published quantization_config."""
    published = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return published | {"weight_block_size": list(block)} | changes


def as_fp8(
    folder: Path,
    twin: Path,
    block: tuple[int, int],
    *,
    scales: torch.dtype = torch.float32,
    apart: bool = False,
) -> Path:
    """Replace a bf16 folder's linears by FP8 with block scales; `twin` becomes the bf16 folder of the same values.

    `apart` puts the scales into a file of their own.
    """
    shutil.copytree(folder, twin)
    path, stored, factors, plain = folder / WEIGHTS, {}, {}, {}
    for name, value in load_file(path).items():
        stored[name] = plain[name] = value
        if value.dim() == 2 and not any(part in name for part in _KEPT):
            stored[name], factors[f"{name}_scale_inv"], plain[name] = _packed(value, block, scales)
    save_file(plain, twin / WEIGHTS, metadata={"format": "pt"})
    if apart:
        path.unlink()
        parts = {f"model-{i}-of-2.safetensors": p for i, p in enumerate((stored, factors), 1)}
        places = {name: file for file, part in parts.items() for name in part}
        listed = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    else:
        parts = {path.name: stored | factors}
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    change_config(folder, quantization_config=settings(block))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _packed(
    weight: Tensor, block: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Elements, scales, and the bf16 weight that they stand for, block by block."""
    rows, columns = block
    elements = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    grid = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    scales, meant = torch.empty(grid, dtype=torch.float32), torch.empty_like(weight)
    for i in range(grid[0]):
        for j in range(grid[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale = (weight[at].float().abs().max() / _LARGEST).to(dtype)
            elements[at] = (weight[at].float() / scale.float()).clamp(-_LARGEST, _LARGEST)
            scales[i, j] = scale.float()
            meant[at] = (elements[at].float() * scale.float()).to(weight.dtype)
    return elements, scales.to(dtype), meant
