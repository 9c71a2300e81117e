"""One safetensors file, read into memory of our own.

Pages of a mapped file count as the process's own for as long as the file stays open, so that a model read block by
block would end up in memory as a whole. Here a tensor's memory is given back with the tensor.
"""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.errors import ModelError
from alphaquant.models.reading import fill
from alphaquant.models.tensors import TensorEntry, read_header
from alphaquant.pinned import buffer

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types by their names in safetensors files."""


class Shard:
    """An open file; reading is safe from several threads. Raises ModelError when its header is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, TensorEntry] = read_header(path)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def tensor(self, name: str, part: int | None = None) -> Tensor:
        """A tensor, or one `part` of its first dimension. Raises ModelError when the file does not hold it whole."""
        entry, start, size = self._place(name)
        dtype = DTYPES.get(entry.dtype)
        shape = entry.shape
        if dtype is None or size != math.prod(shape) * dtype.itemsize:
            raise ModelError(
                f"{self.path} is damaged at tensor {name}: {size} bytes for {entry.dtype} {list(shape)}; "
                f"element types that are read: {', '.join(DTYPES)}. Download the model again."
            )
        if part is not None:
            start, shape = start + part * (size // shape[0]), shape[1:]
        values = buffer(shape, dtype)
        try:
            fill(values, self._file, start)
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error}") from error
        except EOFError as error:
            raise ModelError(
                f"{self.path} ends at {error}, inside a tensor: it was cut off while it was read"
            ) from error
        return values

    def want(self, name: str) -> None:
        """Tell the system that a tensor will be read soon: it reads ahead into memory that is nobody's."""
        _, start, size = self._place(name)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, start, size, os.POSIX_FADV_WILLNEED)

    def _place(self, name: str) -> tuple[TensorEntry, int, int]:
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.path} holds no tensor {name}; download the model again")
        return entry, entry.begin, entry.end - entry.begin
