"""Linears that hold 16 bits a weight where a CPU multiplies in fp32: half of the memory, the same products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Kept: TypeAlias = "Tensor | Callable[[], Tensor]"


class Widened(nn.Linear):
    """A linear that holds its weight in 16 bits and multiplies in the dtype of its inputs, backward too."""

    @classmethod
    def like(cls, linear: nn.Linear) -> Widened:
        """One of the same shape, without values."""
        rows, cols = linear.weight.shape
        return cls(
            cols, rows, bias=linear.bias is not None, device="meta", dtype=linear.weight.dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        wide = self.weight.to(input.dtype)
        with _narrow_for_backward(self.weight.detach(), wide):
            return nn.functional.linear(input, wide, self.bias)


def _narrow_for_backward(narrow: Tensor, wide: Tensor) -> saved_tensors_hooks:
    """While open, a graph that needs `wide` later keeps `narrow`: or it would hold the wide weights of a whole block."""
    place, dtype = wide.untyped_storage().data_ptr(), wide.dtype

    def pack(saved: Tensor) -> Kept:
        if saved.dtype != dtype or saved.untyped_storage().data_ptr() != place:
            return saved
        size, stride, offset = saved.size(), saved.stride(), saved.storage_offset()
        return lambda: torch.as_strided(narrow.to(dtype), size, stride, offset)

    def unpack(kept: Kept) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    return saved_tensors_hooks(pack, unpack)
