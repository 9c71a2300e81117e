"""A safetensors file written tensor by tensor: the header first, from shapes that are known before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.errors import ModelError
from alphaquant.models.shard import DTYPES
from alphaquant.models.tensors import TensorEntry

_ALIGNMENT = 8
_SLICE = 1 << 26


@timed("write")
def write_safetensors(
    path: Path, entries: Mapping[str, TensorEntry], tensor: Callable[[str], Tensor]
) -> None:
    """Write `entries` in their order, each as `tensor(name)` cast to the entry's dtype.

    One tensor is in memory at a time. Those that fill no whole words go last, wide dtypes first, so
    that each tensor is aligned. Raises ModelError for an unknown dtype or another shape.
    """
    order = sorted(entries, key=lambda name: _rank(name, entries[name]))
    with path.open("wb") as file:
        file.write(_header(entries, order))
        for name in order:
            entry, value = entries[name], tensor(name)
            if tuple(value.shape) != entry.shape:
                raise ModelError(
                    f"tensor {name} has shape {list(value.shape)}, {entry.file.name} has "
                    f"{list(entry.shape)}; quantize the model again"
                )
            flat = value.detach().to("cpu", _dtype(name, entry)).reshape(-1).contiguous()
            data = flat.view(torch.uint8).numpy()
            for start in range(0, len(data), _SLICE):
                file.write(data[start : start + _SLICE].data)


def _header(entries: Mapping[str, TensorEntry], order: list[str]) -> bytes:
    """The header's length in 8 bytes and the header, padded to whole words."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        entry = entries[name]
        end = start + _bytes(name, entry)
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _rank(name: str, entry: TensorEntry) -> int:
    if _bytes(name, entry) % _ALIGNMENT == 0:
        return -_ALIGNMENT - 1
    return -_dtype(name, entry).itemsize


def _bytes(name: str, entry: TensorEntry) -> int:
    return math.prod(entry.shape) * _dtype(name, entry).itemsize


def _dtype(name: str, entry: TensorEntry) -> torch.dtype:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise ModelError(
            f"tensor {name} of {entry.file} has dtype {entry.dtype}; allowed: {', '.join(DTYPES)}. "
            "Save the model in one of these."
        )
    return dtype
