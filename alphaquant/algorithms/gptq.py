"""GPTQ: round one column at a time and let the columns still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323). Weights may carry a leading experts dimension; all experts advance together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from alphaquant.algorithms.column_tile import Rounding, in_columns
from alphaquant.algorithms.column_walk import walk_columns
from alphaquant.clock import timed
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import (
    QuantizedWeight,
    Scales,
    encode,
    find_scales,
)
from alphaquant.linalg.hessian import InverseFactor
from alphaquant.linalg.products import take_product


@dataclass(frozen=True)
class GptqOptions:
    """How the columns are walked."""

    block_size: int = 128
    """Columns rounded before the rest of the matrix is updated."""
    act_order: bool = True
    """Columns with the largest inputs first. Groups then stay fixed: inference pays nothing."""
    static_groups: bool = True
    """Scales of every group from the original weight, instead of from the updated one."""
    scale_search: str = "hessian"
    """none, mse or hessian, see `search_of`."""


def search_of(scale_search: str, diagonal: Tensor) -> dict[str, Any]:
    """The arguments of `find_scales` that a scale_search setting means; diagonal is `[..., in]`."""
    if scale_search == "none":
        return {"search": "none"}
    return {"search": "mse", "importance": diagonal.sqrt() if scale_search == "hessian" else None}


@dataclass(frozen=True)
class Solution:
    """What GPTQ found."""

    values: Tensor
    """What each element was rounded to # [..., out, in]"""
    scales: Scales
    scheme: Scheme
    loss: Tensor
    """Σe² = tr((W - Q)(H + λI)(W - Q)ᵀ), exactly what was left # [...]"""
    compensated: Tensor | None
    """What each column had become when it was rounded, where it was asked for # [..., out, in]"""

    @cached_property
    def weight(self) -> QuantizedWeight:
        """The values as they are stored."""
        return encode(self.values, self.scales, self.scheme)

    def dequantize(self) -> Tensor:
        """The values."""
        return self.values


def gptq(
    weight: Tensor,
    factor: InverseFactor,
    scheme: Scheme,
    options: GptqOptions | None = None,
    *,
    compensated: bool = True,
) -> Solution:
    """Quantize `[..., out, in]` against `factor` of its `[..., in, in]` Hessian; `compensated` is left out where nobody asks."""
    options = options or GptqOptions()
    original = weight.float()
    static = _static(scheme, options)
    search = search_of(options.scale_search if static else "none", factor.energy)
    scales = find_scales(original, scheme, **search)
    walk = _Walk(*factor.by_energy) if options.act_order else _Walk(None, factor.upper)
    refresher = None if static else _Refresher(scheme, options, factor.energy, scales)
    values, loss, rounded = _round_columns(walk, original, scheme, scales, options, refresher)
    kept = walk.put_back(rounded) if compensated else None
    return Solution(walk.put_back(values), scales, scheme, loss, kept)


def _static(scheme: Scheme, options: GptqOptions) -> bool:
    """Whether scales are fixed before the walk.

    act_order scatters a group's columns over the walk, and one scale over the whole matrix (nvfp4, nf4) ties
    the groups together: both need them beforehand.
    """
    whole_row = scheme.group_size is None
    return (
        options.static_groups or options.act_order or whole_row or scheme.number_format.kind == "nv"
    )


@dataclass(frozen=True)
class _Walk:
    """The order of the columns and the inverse factor in that order."""

    order: Tensor | None  # [..., in]
    upper: Tensor  # [..., in, in]

    def take(self, x: Tensor) -> Tensor:
        """`[..., out, in]` to `[..., in, out]`, its columns in walking order."""
        columns = in_columns(x)
        return columns if self.order is None else _rows(columns, self.order)

    def put_back(self, x: Tensor) -> Tensor:
        """The inverse of `take`; its memory goes on by columns."""
        return (x if self.order is None else _rows(x, self.order.argsort(-1))).mT

    def groups(self, width: int, cols: int) -> Tensor:
        """To which group of so many columns each one belongs, in walking order, int64 `[..., in]`."""
        if self.order is not None:
            return self.order // width
        columns = torch.arange(cols, device=self.upper.device) // width
        return columns.expand(self.upper.shape[:-1])


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """Rows `[..., n, k]` in an `order` `[..., n]`: whole rows are copied, which gathering element by element would not do."""
    matrices, n = x.shape[:-2], x.shape[-2]
    first = n * torch.arange(math.prod(matrices), device=x.device).view(*matrices, 1)
    return x.flatten(0, -2).index_select(0, (order + first).flatten()).view(x.shape)


class _Refresher:
    """Finds a group's scales anew from the updated weight when the walk enters the group."""

    def __init__(
        self, scheme: Scheme, options: GptqOptions, diagonal: Tensor, scales: Scales
    ) -> None:
        self.scheme, self.options, self.diagonal, self.scales = scheme, options, diagonal, scales
        self.group = scheme.group_size or diagonal.shape[-1]
        # a group may not straddle two lazy blocks, or the later part would miss updates
        self.block_size = max(self.group, options.block_size // self.group * self.group)

    def enter(self, weight: Tensor, column: int, rounding: Rounding) -> None:
        """Update the group that starts at `column` of `[..., in, out]` in the scales and where the walk reads them."""
        columns = slice(column, min(column + self.group, weight.shape[-2]))
        search = search_of(self.options.scale_search, self.diagonal[..., columns])
        found = find_scales(weight[..., columns, :].mT, self.scheme, **search)
        index = column // self.group
        self.scales.scale[..., index] = found.scale[..., 0]
        rounding.scale[..., index, :] = found.effective[..., 0]
        if found.zero is not None and self.scales.zero is not None and rounding.zero is not None:
            self.scales.zero[..., index] = found.zero[..., 0]
            rounding.zero[..., index, :] = found.zero[..., 0]


@timed("columns")
def _round_columns(
    walk: _Walk,
    original: Tensor,
    scheme: Scheme,
    scales: Scales,
    options: GptqOptions,
    refresher: _Refresher | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The walk itself: values in walking order, the loss `[...]`, and what was rounded to the values."""
    cols = original.shape[-1]
    upper = walk.upper.float()
    weight = walk.take(original)  # [..., in, out]
    zero = scales.zero
    rounding = Rounding(
        scheme.number_format,
        in_columns(scales.effective),
        None if zero is None else in_columns(zero),
        walk.groups(scheme.group_width(cols), cols),
        1 / upper.diagonal(dim1=-2, dim2=-1),
    )
    values = torch.empty_like(weight)
    loss = torch.zeros(weight.shape[:-2], dtype=weight.dtype, device=weight.device)
    block_size = refresher.block_size if refresher else options.block_size
    for start in range(0, cols, block_size):
        inside = slice(start, min(start + block_size, cols))

        def enter(column: int, start: int = start) -> None:
            if refresher:
                refresher.enter(weight, start + column, rounding)

        errors = walk_columns(
            weight[..., inside, :],
            upper[..., inside, inside],
            rounding.part(inside),
            values[..., inside, :],
            group=refresher.group if refresher else None,
            enter=enter,
        )
        loss += errors.square().sum((-2, -1))
        if inside.stop < cols:
            later = slice(inside.stop, cols)
            take_product(weight[..., later, :], upper[..., inside, later].mT, errors)
    return values, loss, weight
