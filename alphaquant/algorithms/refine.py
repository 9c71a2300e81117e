"""Refinement: what GPTQ's one pass leaves on the table, taken by moving codes and scales downhill.

A column that GPTQ rounded early cannot answer to what came later. With the scales fixed, the loss
tr((W - Q)H(W - Q)ᵀ) is a parabola in every code, with the codes fixed one in every scale, so that both
are walked to their minima in turns, one coordinate of all rows and experts at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from alphaquant.algorithms import descent, descent_in_c
from alphaquant.algorithms.column_tile import in_columns
from alphaquant.algorithms.descent import Block
from alphaquant.clock import timed
from alphaquant.formats.kernels import trusted
from alphaquant.formats.scales import Scales
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import NumberFormat
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
        self._hessian, self._format, self._start = hessian, start.scheme.number_format, start.scales
        self._inverse = 1 / hessian.diagonal(dim1=-2, dim2=-1)
        self._width = start.scheme.group_width(weight.shape[-1])
        self.refits = refit and self._format.scale_type is not None
        zero = start.scales.zero
        self._scale = in_columns(start.scales.scale)  # [..., groups, out]
        self._zero = None if zero is None else in_columns(zero)
        shared = start.scales.global_scale
        self._factor = weight.new_ones(weight.shape[:-2]) if shared is None else shared  # [...]
        self.values = in_columns(start.dequantize())
        self._left = torch.sub(weight.mT, self.values, out=torch.empty_like(self.values))

    @property
    def scales(self) -> Scales:
        """The scales as they are now."""
        return replace(self._start, scale=self._scale.mT.contiguous())

    def wanted(self) -> Tensor:
        """The minimum of each element's parabola `[..., out, in]`."""
        slope = self._slope(slice(None))
        return (self.values + slope * self._inverse[..., :, None]).mT.contiguous()

    def descend(self, *, codes: bool) -> None:
        """Scales, where they are refitted, to the storable value nearest to their minimum; with `codes` every element
        to the grid value nearest to its own.

        Groups that fit into a block of columns are refitted as the block is entered, wider ones before all blocks.
        """
        cols = self.values.shape[-2]
        if self._width <= _BLOCK:
            for inside in _cut(slice(0, cols), _BLOCK // self._width * self._width):
                self._descend(inside, refits=self.refits, codes=codes)
            return
        for group in _cut(slice(0, cols), self._width) if self.refits else ():
            self._descend(group, refits=True, codes=False)
        for group in _cut(slice(0, cols), self._width) if codes else ():
            for inside in _cut(group, _BLOCK):  # of one group each
                self._descend(inside, refits=False, codes=True)

    def _descend(self, inside: slice, *, refits: bool, codes: bool) -> None:
        """Refit the scales of some columns, or move their codes, or both."""
        groups = slice(inside.start // self._width, -(-inside.stop // self._width))
        block = Block(
            self._format,
            self._width,
            self._hessian[..., inside, inside],
            self._inverse[..., inside],
            self._slope(inside),
            self._factor,
            self._scale[..., groups, :],
            None if self._zero is None else self._zero[..., groups, :],
            self.values[..., inside, :],
            self._left[..., inside, :],
        )
        by = descent_in_c if _serves_in_c(block) else descent
        by.descend(block, refits=refits, moves=codes)

    def _slope(self, inside: slice) -> Tensor:
        """The gradient of the columns `inside`, from what is left now of all columns.

        Asked for when a block is entered: keeping it up to date for all columns would be as many products, and one more to begin with.
        """
        with quick_products():
            return self._hessian[..., inside, :] @ self._left


def _cut(columns: slice, size: int) -> Iterator[slice]:
    """The columns, so many at a time."""
    for start in range(columns.start, columns.stop, size):
        yield slice(start, min(start + size, columns.stop))


def _serves_in_c(block: Block) -> bool:
    """Whether the kernel for a CPU takes a block."""
    fmt, values = block.number_format, block.values
    wide = values.shape[-2] > _BLOCK or values.dim() > 3
    if values.is_cuda or wide or fmt.scale_type is None or values.dtype != torch.float32:
        return False
    asymmetric = block.zero is not None
    variant = ("refinement", fmt, asymmetric)
    return trusted(values.device, variant, lambda: _agrees(fmt, asymmetric))


def _agrees(fmt: NumberFormat, asymmetric: bool) -> bool:
    """Whether kernel and torch refine one small problem alike; rare ties may part, as sums differ in order."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    root, scale = normal(2, 40, 40), (normal(2, 3, 48).abs() + 0.5) * (2 / fmt.max_value)
    square = root @ root.mT / 40
    values, slope, factor = normal(2, 40, 48), normal(2, 40, 48), normal(2).abs() + 0.5
    zero = normal(2, 3, 48).round() if asymmetric else None
    found = []
    for by in (descent_in_c, descent):
        block = Block(
            *(fmt, 16, square, 1 / square.diagonal(dim1=-2, dim2=-1), slope.clone()),
            *(factor, scale.clone(), zero, values.clone(), torch.zeros_like(values)),
        )
        by.descend(block, refits=True, moves=True)
        found.append(block.values)
    return bool((found[0] == found[1]).float().mean() > 0.95)
