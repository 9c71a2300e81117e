"""Tensors that wait on disk until they are needed, so that they count in nobody's memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.models.reading import bytes_of_tensor, fill


@dataclass(frozen=True)
class Waiting:
    """A tensor in a file; calling it reads a copy, on the device that it came from."""

    file: TensorFile
    begin: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __call__(self) -> Tensor:
        """The tensor."""
        values = torch.empty(self.shape, dtype=self.dtype)
        self.file.read(values, self.begin)
        return values.to(self.device)


class TensorFile:
    """A file without a name in `folder`; it is gone with the object, and with the process if that is killed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=folder) as handle:
            self._file = os.dup(handle.fileno())
        weakref.finalize(self, os.close, self._file)
        self._end = 0

    def keep(self, tensor: Tensor) -> Waiting:
        """Put a tensor behind the others."""
        waiting = Waiting(self, self._end, tensor.shape, tensor.dtype, tensor.device)
        self._end += tensor.nbytes
        self.write(tensor, waiting.begin)
        return waiting

    def clear(self) -> None:
        """Forget all tensors."""
        os.ftruncate(self._file, 0)
        self._end = 0

    def write(self, tensor: Tensor, begin: int) -> None:
        """Put a tensor at a place; raises OSError when the disk is full."""
        data = bytes_of_tensor(tensor.detach().cpu().contiguous())
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], begin + done)

    def read(self, into: Tensor, begin: int) -> None:
        """Fill a tensor from a place."""
        try:
            fill(into, self._file, begin)
        except EOFError as error:
            raise OSError("a scratch file is shorter than what was written to it") from error
