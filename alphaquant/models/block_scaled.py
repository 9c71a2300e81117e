"""Checkpoints whose linears are FP8 with one scale per block: DeepSeek-V3 and R1, Qwen3's FP8 releases.

A file holds `X.weight` in E4M3 and `X.weight_scale_inv`; everybody else sees a weight in the model's own type.
Imports no torch: `alphaquant plan` reads shapes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alphaquant.errors import ModelError
from alphaquant.models.tensors import TensorEntry, decoded_dtype

_SCALES = "_scale_inv"
"""Ending of the scales behind the name of their weight; a weight is multiplied with them, whatever they are called."""
_ELEMENTS = "F8_E4M3"
_SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0")


@dataclass(frozen=True, slots=True)
class BlockScales:
    """Where the scales of one weight lie."""

    name: str
    file: Path
    block: tuple[int, int]
    """Rows and columns that share one."""


def is_block_scaled(settings: Mapping[str, Any]) -> bool:
    """Whether a quantization_config means E4M3 under one scale per block, with scales of inputs found as the model runs."""
    block = settings.get("weight_block_size")
    return (
        settings.get("quant_method") == "fp8"
        and settings.get("fmt", "e4m3") == "e4m3"
        and settings.get("activation_scheme", "dynamic") == "dynamic"
        and isinstance(block, list | tuple)
        and len(block) == 2
        and all(isinstance(size, int) and size >= 1 for size in block)
    )


def decoded_entries(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], embedding: str
) -> tuple[dict[str, TensorEntry], dict[str, BlockScales]]:
    """A folder's tensors as they are once FP8 is decoded, without scales, and by weight where its scales lie.

    `config` is its config.json, `embedding` the tensor that tells the model's type where that does not. Tensors of
    other models pass unchanged. Raises ModelError for a weight whose scales are missing or do not fit it.
    """
    settings = config.get("quantization_config") or {}
    if not is_block_scaled(settings):
        return dict(entries), {}
    rows, columns = settings["weight_block_size"]
    dtype = decoded_dtype(config, entries.get(embedding))
    found: dict[str, BlockScales] = {}
    for name, entry in entries.items():
        if entry.dtype == _ELEMENTS:
            scales = f"{name}{_SCALES}"
            _check_scales(name, entry, scales, entries.get(scales), (rows, columns))
            found[name] = BlockScales(scales, entries[scales].file, (rows, columns))
    used = {scales.name for scales in found.values()}
    seen = {
        name: replace(entry, dtype=dtype, begin=0, end=0) if name in found else entry
        for name, entry in entries.items()
        if name not in used
    }
    return seen, found


def _check_scales(
    name: str,
    weight: TensorEntry,
    scales: str,
    entry: TensorEntry | None,
    block: tuple[int, int],
) -> None:
    if entry is None:
        raise ModelError(
            f"tensor {scales} is missing from the checkpoint, which has {name} as {weight.dtype}. "
            "Download the model again."
        )
    if len(weight.shape) != len(block):
        raise ModelError(
            f"tensor {name} is {weight.dtype} of shape {list(weight.shape)}; block scales are of weights [out, in]. "
            "Start from a bf16 checkpoint of this model."
        )
    needed = tuple(-(-size // part) for size, part in zip(weight.shape, block, strict=True))
    if entry.shape != needed or entry.dtype not in _SCALE_TYPES:
        raise ModelError(
            f"tensor {scales} is {entry.dtype} {list(entry.shape)}; {name} of {list(weight.shape)} in blocks of "
            f"{list(block)} (weight_block_size in config.json) needs {list(needed)} in {', '.join(_SCALE_TYPES)}. "
            "Download the model again."
        )
