"""Memory that the system may not move, to and from which a GPU copies some six to twenty times as fast as to any other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

_wanted: ContextVar[bool] = ContextVar("pinned", default=False)


@contextlib.contextmanager
def for_a_gpu() -> Iterator[None]:
    """While open, what this thread reads goes to a GPU: `buffer` gives pinned memory."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def buffer(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor on the CPU."""
    return _pinned(shape, dtype) if _wanted.get() else torch.empty(shape, dtype=dtype)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU: itself, or a copy of a GPU's."""
    if tensor.device.type == "cpu":
        return tensor
    return _pinned(tensor.shape, tensor.dtype).copy_(tensor)


def _pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Pinned where the system has some to give; torch keeps it for the next tensor of that size."""
    with contextlib.suppress(RuntimeError):
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.empty(shape, dtype=dtype)
