"""Tuned rounding: the codes and scales of a weight as parameters that gradients move.

Every element has a latent in units of its scale; the code is the latent's nearest grid value. Gradients
pass straight through the rounding (Bengio et al., arXiv 1308.3432), so a latent drifts until its code
flips. Scales of types that are fine enough to move (bf16) get a factor each; powers of two and E4M3 stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphaquant.formats.grid import round_to_grid
from alphaquant.formats.scales import bf16_scale, split_groups
from alphaquant.formats.weight import QuantizedWeight, Scales, encode

_BEYOND = (
    0.5  # how far a latent may lie outside the grid: a step back in must be able to flip its code
)


class TunedRounding:
    """A stack of weights `[n, out, in]` on its way from one set of codes and scales to a better one."""

    def __init__(self, start: QuantizedWeight, target: Tensor) -> None:
        """Begin at the codes and scales of `start`.

        `target [n, out, in]` are the values that were rounded to them: GPTQ's compensated weights. How
        close each was to another code decides how soon a gradient gets it there.
        """
        fmt = start.scheme.number_format
        self._start, self._cols = start, start.shape[-1]
        self._width = start.scheme.group_width(self._cols)
        self._scale = start.scales.effective.unsqueeze(-1)  # [n, out, groups, 1]
        zero = start.scales.zero
        self._zero = None if zero is None else zero.unsqueeze(-1)
        shift = torch.zeros_like(self._scale) if self._zero is None else self._zero
        self._low, self._high = fmt.min_value - _BEYOND - shift, fmt.max_value + _BEYOND - shift
        latent = split_groups(target.float(), self._width) / self._scale
        # a code that is not the nearest (its latent was compensated past a tie) keeps its cell
        codes = split_groups(start.dequantize(), self._width) / self._scale
        moved = self._round(latent) != self._round(codes)
        self.latent = torch.where(moved, codes, latent).requires_grad_(True)
        self.factor: Tensor | None = None
        if fmt.scale_type == "bfloat16":
            self.factor = torch.zeros_like(self._scale, requires_grad=True)
        self.confine()

    @property
    def size(self) -> int:
        """Number of weights."""
        return self._start.codes.numel()

    def weight(self) -> Tensor:
        """The values `[n, out, in]` that the parameters stand for; differentiable."""
        values: Tensor = _StraightThrough.apply(self.latent, self._scales(), self)  # type: ignore[no-untyped-call]
        return values.flatten(-2)[..., : self._cols]

    def confine(self) -> None:
        """Bring latents back to the grid's range, where their gradients mean something."""
        with torch.no_grad():
            self.latent.copy_(torch.clamp(self.latent, self._low, self._high))

    @torch.no_grad()
    def quantized(self) -> QuantizedWeight:
        """Codes and scales as they would be stored now."""
        scales = self._stored_scales()
        values = self._round(self.latent) * scales.effective.unsqueeze(-1)
        return encode(values.flatten(-2)[..., : self._cols], scales, self._start.scheme)

    def _scales(self) -> Tensor:
        return self._scale if self.factor is None else self._scale * self.factor.exp()

    def _stored_scales(self) -> Scales:
        old = self._start.scales
        if self.factor is None:
            return old
        tuned = self._scales().squeeze(-1)
        scale = torch.copysign(bf16_scale(tuned.abs(), self._start.scheme.number_format), tuned)
        return Scales(scale, old.zero, old.global_scale, old.group_size)

    def _round(self, latent: Tensor) -> Tensor:
        """Grid values of latents, zero point taken off."""
        fmt = self._start.scheme.number_format
        if self._zero is None:
            return round_to_grid(latent, fmt)
        return latent.round().add_(self._zero).clamp_(fmt.min_value, fmt.max_value).sub_(self._zero)


class _StraightThrough(torch.autograd.Function):
    """Rounded latents times scales; to gradients, latents times scales."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, rounding: TunedRounding) -> Tensor:
        elements = rounding._round(latent)
        # only the gradient of a scale needs them
        ctx.save_for_backward(elements if ctx.needs_input_grad[1] else None, scale)
        return elements * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        elements, scale = ctx.saved_tensors
        for_scale = None if elements is None else (gradient * elements).sum(-1, keepdim=True)
        return gradient * scale, for_scale, None
