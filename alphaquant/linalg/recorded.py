"""Reductions to tridiagonal form on a GPU, recorded as a graph when more matrices of a size come than are held at once.

A column is some 25 calls with little work each: one by one they take four times as long as their work.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.linalg.tridiagonal import tridiagonal

_LARGEST = 2048
"""Columns up to which calls take longer than their work."""

_Kind: TypeAlias = tuple[int, torch.dtype, torch.device]


class _Recording:
    """The reduction of as many matrices as it was made from, whose memory it holds."""

    def __init__(self, matrices: Tensor) -> None:
        self._matrices = torch.zeros_like(matrices)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = tridiagonal(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def __call__(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        count = len(matrices)
        self._matrices[:count] = matrices
        self._matrices[count:] = 0
        self._graph.replay()
        diagonal, beside = self._found
        return diagonal[:count].clone(), beside[:count].clone()


class _Reductions:
    """`tridiagonal` of symmetric `[batch, n, n]`, which may be overwritten; recorded the second time that matrices of a size come."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._kind: _Kind | None = None
        self._recording: _Recording | None = None

    def __call__(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        kind = matrices.shape[-1], matrices.dtype, matrices.device
        with self._one_at_a_time, torch.cuda.device_of(matrices):
            if kind != self._kind:
                self._kind, self._recording = kind, None
                return tridiagonal(matrices)
            if kind[0] > _LARGEST or not matrices.is_cuda:
                return tridiagonal(matrices)
            if self._recording is None or len(self._recording) < len(matrices):
                self._recording = None  # or there would be two
                # a driver may refuse, or who else uses the GPU in this process be in the way
                with contextlib.suppress(RuntimeError):
                    self._recording = _Recording(matrices)
            return self._recording(matrices) if self._recording else tridiagonal(matrices)

    def forget(self) -> None:
        """Give the memory of a recording back."""
        with self._one_at_a_time:
            self._kind = self._recording = None


reductions = _Reductions()
"""Those of this process; call `forget` when the last matrices of a kind have come."""
