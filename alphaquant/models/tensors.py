"""Which tensor lies in which safetensors file, read from headers alone (no torch, no weights)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphaquant.errors import ModelError

_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What config.json may name as a model's type, by the names that safetensors files have for it."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Place and shape of one tensor on disk."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    """First byte in the file, and the first behind it; equal for what no file holds as it is."""
    end: int = 0


def tensor_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a model folder: one `model.safetensors` or the shards that an index names.

    Raises ModelError naming the file (and tensor) that is missing, truncated or unreadable.
    """
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map = _weight_map(index_path)
        files = sorted(set(weight_map.values()))
        entries: dict[str, TensorEntry] = {}
        for file in files:
            entries |= read_header(folder / file, _first_named(weight_map, file))
        for name, file in weight_map.items():
            if name not in entries:
                raise ModelError(
                    f"{file} lacks tensor {name}, which {index_path.name} places there"
                )
        return entries
    single = folder / "model.safetensors"
    if single.is_file():
        return read_header(single)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} holds pickled weights only, and AlphaQuant never unpickles. Save the model as "
            "safetensors (transformers: save_pretrained) and run again."
        )
    raise ModelError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")


def decoded_dtype(config: Mapping[str, Any], embedding: TensorEntry | None) -> str:
    """The safetensors type that a packed model's weights are decoded to: config.json's, else the embedding's, else BF16."""
    named = config.get("dtype") or config.get("torch_dtype")
    if named:
        return _DTYPES.get(str(named), "BF16")
    return embedding.dtype if embedding and embedding.dtype in _DTYPES.values() else "BF16"


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a safetensors index: {error!r}") from error
    return {str(name): str(file) for name, file in weight_map.items()}


def _first_named(weight_map: dict[str, str], file: str) -> str:
    return next(name for name, place in weight_map.items() if place == file)


def read_header(path: Path, wanted: str | None = None) -> dict[str, TensorEntry]:
    """One file's tensors; its length must cover every tensor. Raises ModelError, which says that `wanted` needs it."""
    suffix = f" (needed for tensor {wanted})" if wanted else ""
    if not path.is_file():
        raise ModelError(f"{path} is missing{suffix}; download the model again")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise ModelError(f"{path} is truncated or not a safetensors file{suffix}")
            header = json.loads(file.read(length))
        entries = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            if end > size:
                raise ModelError(
                    f"{path} is truncated: tensor {name} ends at byte {end}, the file has {size}. "
                    "Download it again."
                )
            shape = tuple(int(n) for n in entry["shape"])
            entries[name] = TensorEntry(path, str(entry["dtype"]), shape, begin, end)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}{suffix}") from error
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} has a damaged safetensors header{suffix}: {error!r}") from error
    return entries
