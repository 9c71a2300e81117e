"""Refinement: what GPTQ's one pass leaves on the table, taken by moving codes and scales downhill.

A column that GPTQ rounded early cannot answer to what came later. With the scales fixed, the loss
tr((W - Q)H(W - Q)ᵀ) is a parabola in every code, with the codes fixed one in every scale, so that both
are walked to their minima in turns, one coordinate of all rows and experts at a time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from alphaquant.formats.scales import nearest_scale
from alphaquant.formats.weight import QuantizedWeight, Scales, encode, expand, fake_quantize

_BLOCK = 128  # columns that move before the rest of the gradient is updated


def refine(
    weight: Tensor,  # [..., out, in]
    hessian: Tensor,  # [..., in, in] positive definite: damped
    start: QuantizedWeight,
    *,
    sweeps: int = 1,
    refit: bool = True,
) -> tuple[QuantizedWeight, Tensor]:
    """Refit the scales of `start` if asked, then `sweeps` times: move every code, refit again.

    Returns it with what each element would be if nothing had to be rounded and all others stayed
    `[..., out, in]`. The loss never grows, up to the rounding of fp32 sums.
    """
    walk = _Descent(weight.float(), hessian.float(), start)
    for turn in range(sweeps + 1):
        if turn:
            walk.move_codes()
        if refit:
            walk.move_scales()
    return encode(walk.values, walk.scales, start.scheme), walk.wanted()


class _Descent:
    """Values and scales on their way down, and the gradient (W - Q)H that leads them."""

    def __init__(self, weight: Tensor, hessian: Tensor, start: QuantizedWeight) -> None:
        self._hessian, self._format = hessian, start.scheme.number_format
        self._width = start.scheme.group_width(weight.shape[-1])
        self.scales: Scales = start.scales
        self.values = start.dequantize()  # [..., out, in]
        self._gradient = (weight - self.values) @ hessian  # [..., out, in]

    def wanted(self) -> Tensor:
        """The minimum of each element's parabola `[..., out, in]`."""
        return self.values + self._gradient / self._hessian.diagonal(dim1=-2, dim2=-1)[..., None, :]

    def move_codes(self) -> None:
        """Every element to the grid value nearest to its minimum, column after column."""
        cols = self.values.shape[-1]
        scale, zero = expand(self.scales, cols)
        for start in range(0, cols, _BLOCK):
            inside = slice(start, min(start + _BLOCK, cols))
            before, now = self.values[..., inside], self.values[..., inside].clone()
            local = self._gradient[..., inside].clone()
            square = self._hessian[..., inside, inside]
            for column in range(now.shape[-1]):
                at = start + column
                wanted = now[..., column] + local[..., column] / square[..., column, column, None]
                z = None if zero is None else zero[..., at]
                found = fake_quantize(wanted, scale[..., at], z, self._format)
                step = found - now[..., column]
                now[..., column] = found
                local -= step[..., :, None] * square[..., None, column, :]
            self._step(inside, now - before)

    def move_scales(self) -> None:
        """Every scale to the storable value nearest to its minimum, group after group."""
        if self._format.scale_type is None:
            return
        cols = self.values.shape[-1]
        effective = self.scales.effective
        scale = self.scales.scale.clone()
        shared = self.scales.global_scale
        for group in range(scale.shape[-1]):
            inside = slice(group * self._width, min((group + 1) * self._width, cols))
            elements = self.values[..., inside] / effective[..., group, None]
            slope = (elements * self._gradient[..., inside]).sum(-1)
            curvature = ((elements @ self._hessian[..., inside, inside]) * elements).sum(-1)
            wanted = effective[..., group] + slope / curvature
            if shared is not None:
                wanted = wanted / shared[..., None]
            found = nearest_scale(wanted, self._format)
            scale[..., group] = torch.where(curvature > 0, found, scale[..., group])
            changed = scale[..., group] if shared is None else scale[..., group] * shared[..., None]
            self._step(inside, elements * changed[..., None] - self.values[..., inside])
        self.scales = replace(self.scales, scale=scale)

    def _step(self, inside: slice, change: Tensor) -> None:
        self.values[..., inside] += change
        self._gradient -= change @ self._hessian[..., inside, :]
