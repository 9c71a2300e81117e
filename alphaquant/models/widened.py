"""Linears that hold 16 bits a weight where a CPU multiplies in fp32: half of the memory, the same products."""

from __future__ import annotations

from torch import Tensor, nn


class Widened(nn.Linear):
    """A linear that holds its weight in 16 bits and multiplies in the dtype of its inputs."""

    @classmethod
    def like(cls, linear: nn.Linear) -> Widened:
        """One of the same shape, without values."""
        rows, cols = linear.weight.shape
        return cls(
            cols, rows, bias=linear.bias is not None, device="meta", dtype=linear.weight.dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)
