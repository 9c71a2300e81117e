"""One quantized decoder block on disk, and the weights that it stands for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alphaquant.algorithms.solve_block import SolvedBlock
from alphaquant.clock import timed
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import HEAD
from alphaquant.models.on_demand import OnDemand
from alphaquant.models.shard import Shard
from alphaquant.models.untied import UntiedCheckpoint
from alphaquant.progress import reporter

_WEIGHTS = "block.safetensors"
_ERRORS = "errors.parquet"
_TUNING = "tuning.json"
_MOVED = "moved.safetensors"
_PART = 1 << 26  # weights that are dequantized at once
_CPU = torch.device("cpu")


def save_block(folder: Path, block: SolvedBlock) -> None:
    """Write codes, scales and zeros by linear name, what else moved, the per-linear errors, and what tuning brought."""
    _save_weights(folder, block.weights)
    if block.moved:
        _save_moved(folder, _as_stored(block.moved))
    block.errors.to_parquet(folder / _ERRORS, index=False)
    if block.tuning is not None:
        (folder / _TUNING).write_text(json.dumps(asdict(block.tuning)), encoding="utf-8")


def _as_stored(moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Linears that the plan keeps are stored in 16 bits, norms in their own."""
    return {name: kept(tensor) if tensor.dim() > 1 else tensor for name, tensor in moved.items()}


def save_retuned_block(
    folder: Path, weights: Mapping[str, QuantizedWeight], moved: Mapping[str, Tensor]
) -> None:
    """Write a block whose norms, by name, differ from the checkpoint's; errors of its linears are not known."""
    _save_weights(folder, weights)
    _save_moved(folder, moved)


def _save_moved(folder: Path, moved: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in moved.items()}, folder / _MOVED)


def _save_weights(folder: Path, weights: Mapping[str, QuantizedWeight]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors |= {key: value.cpu().contiguous() for key, value in weight.tensors(name).items()}
    schemes = {name: str(weight.scheme) for name, weight in weights.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"schemes": json.dumps(schemes, sort_keys=True)})


def load_block(folder: Path) -> Mapping[str, QuantizedWeight]:
    """The quantized linears of a block, by name, each read when it is asked for."""
    schemes, shard = load_schemes(folder), Shard(folder / _WEIGHTS)
    tensors = OnDemand(shard.entries, shard.tensor)
    return OnDemand(
        schemes, lambda name: QuantizedWeight.from_tensors(name, tensors, schemes[name])
    )


def load_schemes(folder: Path) -> dict[str, Scheme]:
    """The schemes of a block's quantized linears, by name, from its header."""
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        return _schemes(file)


def _schemes(file: Any) -> dict[str, Scheme]:
    schemes: dict[str, str] = json.loads(file.metadata()["schemes"])
    return {name: Scheme.parse(text, group_size=None) for name, text in schemes.items()}


def load_errors(folder: Path) -> pd.DataFrame:
    """The per-linear errors of a block."""
    return pd.read_parquet(folder / _ERRORS)


def load_tuning(folder: Path) -> dict[str, Any] | None:
    """The fields of a block's `Tuning`; None when it was not tuned."""
    path = folder / _TUNING
    if not path.is_file():
        return None
    return dict(json.loads(path.read_text(encoding="utf-8")))


def stored_sizes(folder: Path) -> tuple[int, int]:
    """Number of codes and of scales in a block, read from its header."""
    counts = {"codes": 0, "scale": 0}
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            kind = key.rpartition(".")[2]
            if kind in counts:
                counts[kind] += math.prod(file.get_slice(key).get_shape())
    return counts["codes"], counts["scale"]


def load_moved(folder: Path) -> Mapping[str, Tensor]:
    """A block's norms and kept linears by name (without `.weight`) where they are not the checkpoint's."""
    path = folder / _MOVED
    if not path.is_file():
        return {}
    shard = Shard(path)
    return OnDemand(shard.entries, shard.tensor)


def kept_weight(checkpoint: Checkpoint, linear: str, folder: Path) -> Tensor:
    """A linear that the plan keeps as the block in `folder` has it."""
    moved = load_moved(folder).get(linear)
    return kept(checkpoint.weight(linear)) if moved is None else moved


def kept_weights(checkpoint: Checkpoint, linears: Sequence[str]) -> Mapping[str, Tensor]:
    """Linears that are not quantized as the checkpoint will store them, each made when it is asked for."""
    return OnDemand(linears, lambda linear: kept(checkpoint.weight(linear)))


def block_weights(
    checkpoint: Checkpoint, index: int, folder: Path, device: torch.device = _CPU
) -> Mapping[str, Tensor]:
    """Every linear of a block as the checkpoint will store it, quantized or kept, and its norms where they moved.

    Each is made when it is asked for; what is quantized becomes values on the `device`.
    """
    return _stored_weights(checkpoint, index, load_block(folder), load_moved(folder), device)


def solved_weights(
    checkpoint: Checkpoint, index: int, block: SolvedBlock, device: torch.device = _CPU
) -> Mapping[str, Tensor]:
    """What `block_weights` will give of a block that is not saved yet."""
    return _stored_weights(checkpoint, index, block.weights, _as_stored(block.moved), device)


def _stored_weights(
    checkpoint: Checkpoint,
    index: int,
    quantized: Mapping[str, QuantizedWeight],
    moved: Mapping[str, Tensor],
    device: torch.device,
) -> Mapping[str, Tensor]:
    @timed("load weights")
    def weight(name: str) -> Tensor:
        if name in moved:
            return moved[name]
        if name in quantized:
            return quantized[name].to(device).dequantize().to(checkpoint.dtype(f"{name}.weight"))
        return kept(checkpoint.weight(name))

    linears = [spec.name for spec in checkpoint.block_specs(index)]
    return OnDemand([*linears, *moved], weight)


def blocks_of(checkpoint: Checkpoint, folders: Sequence[Path]) -> Sequence[Path]:
    """The decoder blocks among the folders of a quantized model."""
    return folders[: checkpoint.blocks]


def head_of(checkpoint: Checkpoint, folders: Sequence[Path]) -> Path | None:
    """The folder of a quantized head, which lies behind those of the blocks; None where the head is kept."""
    return folders[checkpoint.blocks] if len(folders) > checkpoint.blocks else None


@timed("load weights")
def quantized_head(checkpoint: Checkpoint, folders: Sequence[Path]) -> Tensor | None:
    """The head `[vocabulary, hidden]` as the checkpoint will store it, tied or not; None where it is kept."""
    folder = head_of(checkpoint, folders)
    if folder is None:
        return None
    weight = load_block(folder)[HEAD]
    stored = checkpoint.head_weight().dtype
    rows, step = weight.shape[0], max(1, _PART // weight.shape[1])
    out = torch.empty(weight.shape, dtype=stored)
    for start in range(0, rows, step):  # fp32 values of the whole would be twice as large
        out[start : start + step] = weight.rows(start, start + step).dequantize()
    return out


def with_own_head(checkpoint: Checkpoint, folders: Sequence[Path]) -> Checkpoint:
    """The checkpoint as its quantized form has to be named: untied where a tied head is quantized."""
    if head_of(checkpoint, folders) is None or not checkpoint.config.tie_word_embeddings:
        return checkpoint
    reporter().note(
        f"{HEAD} is quantized, so it is no longer tied: the checkpoint holds it beside the embedding"
    )
    return UntiedCheckpoint(checkpoint)


def kept(weight: Tensor) -> Tensor:
    """A weight that the plan keeps: 16-bit ones as they are, wider ones rounded to bf16."""
    return weight.to(torch.bfloat16).to(weight.dtype) if weight.element_size() > 2 else weight
