"""A block of columns on its way down: scales move to their minimum, then codes, one column after the other.

This is the descent in torch, which the kernel of `descent_in_c` must agree with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.column_walk import walk_columns
from alphaquant.formats.scales import nearest_scale
from alphaquant.formats.table import NumberFormat
from alphaquant.linalg.products import quick_products


@dataclass(frozen=True)
class Block:
    """Some columns: of whole groups, or of one that is wider; a column follows the one before it in memory."""

    number_format: NumberFormat
    width: int
    """Columns of a group."""
    square: Tensor
    """Of the Hessian # [..., columns, columns]"""
    inverse: Tensor
    """Of its diagonal # [..., columns]"""
    slope: Tensor
    """The gradient, which is used up # [..., columns, out]"""
    factor: Tensor
    """What every scale of a matrix is multiplied by # [...]"""
    scale: Tensor
    """As stored; moves # [..., groups, out]"""
    zero: Tensor | None
    """# [..., groups, out]"""
    values: Tensor
    """What elements are rounded to; move # [..., columns, out]"""
    left: Tensor
    """What is left of the weight; follows # [..., columns, out]"""


def descend(block: Block, *, refits: bool, moves: bool) -> None:
    """Refit the scales of the block's groups, or move its codes, or both in this order."""
    now = block.values.clone()
    if refits:
        _refit(block, now, felt=moves)
    if moves:
        columns = torch.arange(now.shape[-2], device=now.device)
        rounding = Rounding(
            block.number_format,
            (block.scale * block.factor[..., None, None]).contiguous(),
            None if block.zero is None else block.zero.contiguous(),
            (columns // block.width).expand(now.shape[:-1]),
            block.inverse,
            now,
        )
        moved = torch.empty_like(now)
        walk_columns(block.slope, block.square, rounding, moved)
        now = moved
    block.left.sub_(now - block.values)
    block.values.copy_(now)


def _refit(block: Block, now: Tensor, *, felt: bool) -> None:
    """Move every scale to the storable one nearest to its minimum; values `now` follow, and slopes where they are `felt` later on."""
    factor, slope, square = block.factor[..., None], block.slope, block.square
    columns = now.shape[-2]
    for index, start in enumerate(range(0, columns, block.width)):
        group = slice(start, min(start + block.width, columns))
        scale = block.scale[..., index, :]  # [..., out]
        elements = now[..., group, :] / (scale * factor)[..., None, :]
        with quick_products():
            pull = square[..., group, group] @ elements
        rise = (elements * slope[..., group, :]).sum(-2)
        curvature = (pull * elements).sum(-2)
        found = nearest_scale(scale + rise / (curvature * factor), block.number_format)
        found = torch.where(curvature > 0, found, scale)
        change = ((found - scale) * factor)[..., None, :]
        torch.mul(elements, (found * factor)[..., None, :], out=now[..., group, :])
        if block.width < columns:
            slope -= square[..., :, group] @ elements.mul_(change)
        elif felt:  # what the one group does to its slope is known
            slope.addcmul_(pull, change, value=-1)
        scale.copy_(found)
