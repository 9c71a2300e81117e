"""Scaled stack: linears whose codes stay while gradients move their scales.

What a forward pass sees is what would be stored: scales rounded to bf16, values to the checkpoint's dtype.
Gradients pass both roundings as if they were not there, so small moves add up in fp32. Codes stay one byte
each; their values exist only while a block is running.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alphaquant.formats.grid import from_codes
from alphaquant.formats.scales import bf16_scale, split_groups
from alphaquant.formats.weight import QuantizedWeight, Scales


class ScaledStack:
    """Linears of one block that share shape, scheme and stored dtype, as `[n, out, in]`."""

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[QuantizedWeight],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`dtype` is the checkpoint's."""
        first = weights[0]
        self.names, self._scheme, self._dtype = names, first.scheme, dtype
        self._cols, self._width = first.shape[-1], first.scheme.group_width(first.shape[-1])
        self._codes = torch.stack([weight.codes for weight in weights]).to(device)
        self._scales = [weight.scales for weight in weights]
        self._start = torch.stack([scales.effective for scales in self._scales]).to(device)
        zeros = [scales.zero for scales in self._scales if scales.zero is not None]
        self._zero = torch.stack(zeros).to(device).unsqueeze(-1) if zeros else None
        self.factor: Tensor | None = None
        """Natural logarithm of what multiplies each scale `[n, out, groups]`; None for scales too coarse to move."""
        if self._scheme.number_format.scale_type == "bfloat16":
            self.factor = torch.zeros_like(self._start, requires_grad=True)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each linear's values `[out, in]` in fp32; differentiable in `factor`."""
        values: Tensor = _Values.apply(self._scale(), self)  # type: ignore[no-untyped-call]
        return zip(self.names, values, strict=True)

    @torch.no_grad()
    def quantized(self) -> Iterator[tuple[str, QuantizedWeight]]:
        """Each linear as it would be stored now, on the CPU."""
        stored = self._scale().cpu()
        for position, (name, old) in enumerate(zip(self.names, self._scales, strict=True)):
            scales = old
            if self.factor is not None:
                scales = Scales(stored[position], old.zero, old.global_scale, old.group_size)
            yield name, QuantizedWeight(self._codes[position].cpu(), scales, self._scheme)

    def _scale(self) -> Tensor:
        if self.factor is None:
            return self._start
        moved = self._start * self.factor.exp()
        stored = torch.copysign(bf16_scale(moved.abs(), self._scheme.number_format), moved)
        return moved + (stored - moved).detach()

    def elements(self) -> Tensor:
        """The grid values of the codes, zero points taken off `[n, out, groups, width]`."""
        elements = split_groups(from_codes(self._codes, self._scheme.number_format), self._width)
        return elements if self._zero is None else elements.sub_(self._zero)

    def join(self, values: Tensor) -> Tensor:
        """Groups `[n, out, groups, width]` as rows `[n, out, in]`, rounded to the stored dtype."""
        return values.flatten(-2)[..., : self._cols].to(self._dtype).float()

    def split(self, values: Tensor) -> Tensor:
        """Rows `[n, out, in]` as groups."""
        return split_groups(values, self._width)


class _Values(torch.autograd.Function):
    """Elements times scales. The elements are made anew for the gradient: codes are smaller to keep."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, stack: ScaledStack) -> Tensor:
        ctx.stack = stack
        return stack.join(stack.elements() * scale.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        stack: ScaledStack = ctx.stack
        return (stack.split(gradient) * stack.elements()).sum(-1), None
