"""One quantized decoder block on disk, and the weights that it stands for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alphaquant.algorithms.solve_block import SolvedBlock
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.checkpoint import Checkpoint

_WEIGHTS = "block.safetensors"
_ERRORS = "errors.parquet"
_TUNING = "tuning.json"


def save_block(folder: Path, block: SolvedBlock) -> None:
    """Write codes, scales and zeros by linear name, the per-linear errors, and what tuning brought."""
    weights = block.weights
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors |= {key: value.cpu().contiguous() for key, value in weight.tensors(name).items()}
    schemes = {name: str(weight.scheme) for name, weight in weights.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"schemes": json.dumps(schemes, sort_keys=True)})
    block.errors.to_parquet(folder / _ERRORS, index=False)
    if block.tuning is not None:
        (folder / _TUNING).write_text(json.dumps(asdict(block.tuning)), encoding="utf-8")


def load_block(folder: Path) -> dict[str, QuantizedWeight]:
    """The quantized linears of a block, by name."""
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        schemes: dict[str, str] = json.loads(file.metadata()["schemes"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return {
        name: QuantizedWeight.from_tensors(name, tensors, Scheme.parse(text, group_size=None))
        for name, text in schemes.items()
    }


def load_errors(folder: Path) -> pd.DataFrame:
    """The per-linear errors of a block."""
    return pd.read_parquet(folder / _ERRORS)


def load_tuning(folder: Path) -> dict[str, Any] | None:
    """The fields of a block's `Tuning`; None when it was not tuned."""
    path = folder / _TUNING
    if not path.is_file():
        return None
    return dict(json.loads(path.read_text(encoding="utf-8")))


def block_weights(checkpoint: Checkpoint, index: int, folder: Path) -> dict[str, Tensor]:
    """Every linear of a block as the checkpoint will store it, quantized or kept."""
    quantized = load_block(folder)
    return {
        spec.name: quantized[spec.name].dequantize().to(checkpoint.weight(spec.name).dtype)
        if spec.name in quantized
        else kept(checkpoint.weight(spec.name))
        for spec in checkpoint.block_specs(index)
    }


def kept(weight: Tensor) -> Tensor:
    """A weight that the plan keeps: 16-bit ones as they are, wider ones rounded to bf16."""
    return weight.to(torch.bfloat16).to(weight.dtype) if weight.element_size() > 2 else weight
