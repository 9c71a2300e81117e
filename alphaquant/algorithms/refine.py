"""Refinement: what GPTQ's one pass leaves on the table, taken by moving codes and scales downhill.

A column that GPTQ rounded early cannot answer to what came later. With the scales fixed, the loss
tr((W - Q)H(W - Q)ᵀ) is a parabola in every code, with the codes fixed one in every scale, so that both
are walked to their minima in turns, one coordinate of all rows and experts at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.column_walk import walk_columns
from alphaquant.clock import timed
from alphaquant.formats.scales import Scales, nearest_scale
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, encode
from alphaquant.linalg.products import quick_products

_BLOCK = 128  # columns that move before anybody else feels it


class OnGrid(Protocol):
    """A rounded weight: what GPTQ found, or what was read from its codes."""

    @property
    def scales(self) -> Scales: ...
    @property
    def scheme(self) -> Scheme: ...
    def dequantize(self) -> Tensor:
        """Its values `[..., out, in]`."""


@timed("refinement")
def refine(
    weight: Tensor,  # [..., out, in]
    hessian: Tensor,  # [..., in, in] positive definite: damped
    start: OnGrid,
    *,
    sweeps: int = 1,
    refit: bool = True,
    wanted: bool = True,
) -> tuple[QuantizedWeight, Tensor | None]:
    """Move every code `sweeps` times, and, if asked, refit the scales before each sweep and behind the last.

    Returns it with what each element would be if nothing had to be rounded and all others stayed
    `[..., out, in]`, where that is `wanted`. The loss never grows, up to the rounding of fp32 sums.
    """
    walk = _Descent(weight.float(), hessian.float(), start, refit=refit)
    for codes in [True] * sweeps + [False] * walk.refits:
        walk.descend(codes=codes)
    found = encode(walk.values.mT, walk.scales, start.scheme)
    return found, walk.wanted() if wanted else None


class _Descent:
    """Values and scales on their way down, and what is left of the weight, which leads them; all `[..., in, out]`."""

    def __init__(self, weight: Tensor, hessian: Tensor, start: OnGrid, *, refit: bool) -> None:
        self._hessian, self._format = hessian, start.scheme.number_format
        self._inverse = 1 / hessian.diagonal(dim1=-2, dim2=-1)
        self._width = start.scheme.group_width(weight.shape[-1])
        self.refits = refit and self._format.scale_type is not None
        self.scales = replace(start.scales, scale=start.scales.scale.clone())
        self.values = start.dequantize().mT.clone(memory_format=torch.contiguous_format)
        self._left = torch.sub(weight.mT, self.values, out=torch.empty_like(self.values))

    def wanted(self) -> Tensor:
        """The minimum of each element's parabola `[..., out, in]`."""
        slope = self._slope(slice(None))
        return (self.values + slope * self._inverse[..., :, None]).mT.contiguous()

    def descend(self, *, codes: bool) -> None:
        """Scales, where they are refitted, to the storable value nearest to their minimum; with `codes` every element
        to the grid value nearest to its own.

        Groups that fit into a block of columns are refitted as the block is entered, wider ones before all blocks.
        """
        fits = self._width <= _BLOCK
        cols = self.values.shape[-2]
        if self.refits and not fits:
            for start in range(0, cols, self._width):
                inside = slice(start, min(start + self._width, cols))
                now, slope = self.values[..., inside, :].clone(), self._slope(inside)
                square = self._hessian[..., inside, inside]
                self._move_scales(inside, now, slope, square, felt=False)
                self._place(inside, now)
        size = _BLOCK // self._width * self._width if fits else _BLOCK
        for start in range(0, cols if fits or codes else 0, size):
            inside = slice(start, min(start + size, cols))
            now, slope = self.values[..., inside, :].clone(), self._slope(inside)
            square = self._hessian[..., inside, inside]
            if self.refits and fits:
                self._move_scales(inside, now, slope, square, felt=codes)
            if codes:
                now = self._moved_codes(inside, now, slope, square)
            self._place(inside, now)

    def _slope(self, inside: slice) -> Tensor:
        """The gradient of the columns `inside`, from what is left now of all columns.

        Asked for when a block is entered: keeping it up to date for all columns would be as many products, and one more to begin with.
        """
        with quick_products():
            return self._hessian[..., inside, :] @ self._left

    def _move_scales(
        self, inside: slice, now: Tensor, slope: Tensor, square: Tensor, *, felt: bool
    ) -> None:
        """Refit the groups of the columns `inside`; their values `now` follow, and `slope` where that is `felt` later on."""
        shared = self.scales.global_scale
        factor = 1.0 if shared is None else shared[..., None]
        columns = now.shape[-2]
        for start in range(0, columns, self._width):
            group = slice(start, min(start + self._width, columns))
            index = (inside.start + start) // self._width
            scale = self.scales.scale[..., index]  # [..., out]
            elements = now[..., group, :] / (scale * factor)[..., None, :]
            with quick_products():
                pull = square[..., group, group] @ elements
            rise = (elements * slope[..., group, :]).sum(-2)
            curvature = (pull * elements).sum(-2)
            found = nearest_scale(scale + rise / (curvature * factor), self._format)
            found = torch.where(curvature > 0, found, scale)
            change = ((found - scale) * factor)[..., None, :]
            self.scales.scale[..., index] = found
            torch.mul(elements, (found * factor)[..., None, :], out=now[..., group, :])
            if self._width < columns:
                slope -= square[..., :, group] @ elements.mul_(change)
            elif felt:  # what the one group does to its slope is known
                slope.addcmul_(pull, change, value=-1)

    def _moved_codes(self, inside: slice, now: Tensor, slope: Tensor, square: Tensor) -> Tensor:
        """What the elements `now` of the columns `inside` move to, led by `slope`, which is used up."""
        first, last = inside.start // self._width, -(-inside.stop // self._width)
        columns = torch.arange(inside.start, inside.stop, device=now.device)
        scales = self.scales.groups(slice(first, last))
        zero = scales.zero
        rounding = Rounding(
            self._format,
            scales.effective.mT.contiguous(),
            None if zero is None else zero.mT.contiguous(),
            (columns // self._width - first).expand(*now.shape[:-1]),
            self._inverse[..., inside],
            now,
        )
        moved = torch.empty_like(now)
        walk_columns(slope, square, rounding, moved)
        return moved

    def _place(self, inside: slice, now: Tensor) -> None:
        """Put a block's new values in, and take what they change from what is left."""
        values = self.values[..., inside, :]
        self._left[..., inside, :] -= now - values
        values.copy_(now)
