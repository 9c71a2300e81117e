"""A tile of columns: each is rounded in turn, and what that changes is taken from those to come.

Columns lie in rows of memory here (`[..., columns, out]`), so that a column is read and written in one piece.
This is the walk in torch, which the kernels of `column_kernel` and `columns_in_c` must agree with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.formats.table import NumberFormat
from alphaquant.formats.weight import fake_quantize

TILE = 16
"""Columns whose effect on each other is applied one by one; beyond them it is one product of matrices. 8 to 32 are alike."""


@dataclass(frozen=True)
class Rounding:
    """How the columns of a matrix are rounded: all that a walk needs besides their values and their coupling."""

    number_format: NumberFormat
    scale: Tensor
    """# [..., groups, out]"""
    zero: Tensor | None
    """# [..., groups, out]"""
    group: Tensor
    """To which group each column belongs, int64 # [..., columns]"""
    inverse: Tensor
    """What turns an error into a step, or a slope into the way to its minimum # [..., columns]"""
    before: Tensor | None = None
    """None while values are rounded themselves, and a step is the error that is left times `inverse`. Where elements
    stand already, the walked values are the slopes that lead on from there, and a step is an element's move
    # [..., columns, out]"""

    def part(self, columns: slice) -> Rounding:
        """The rounding of some columns."""
        before = None if self.before is None else self.before[..., columns, :]
        group, inverse = self.group[..., columns], self.inverse[..., columns]
        return Rounding(self.number_format, self.scale, self.zero, group, inverse, before)

    def of_columns(self, values: Tensor) -> Tensor:
        """What each column has of `[..., groups, out]`: `[..., columns, out]`."""
        return values.gather(-2, self.group[..., None].expand(*self.group.shape, values.shape[-1]))


def walk_tile(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    rounding: Rounding,
    values: Tensor,  # [..., columns, out]
    steps: Tensor,  # [..., columns, out]
) -> None:
    """Fill in `values` and `steps`.

    Each step times its row of `coupling` is taken from the later columns of `local`, in place, before they
    are rounded.
    """
    # taken apart once: a column costs some ten calls, and an index on every operand would be as many again
    zeros = None if rounding.zero is None else rounding.of_columns(rounding.zero).unbind(-2)
    before = None if rounding.before is None else rounding.before.unbind(-2)
    scales = rounding.of_columns(rounding.scale).unbind(-2)
    inverses = rounding.inverse[..., None].unbind(-2)
    rows = coupling[..., None].unbind(-3)  # [..., columns, 1]
    there = zip(local.unbind(-2), values.unbind(-2), steps.unbind(-2), strict=True)
    for column, (here, found, step) in enumerate(there):
        inverse = inverses[column]
        wanted = here if before is None else torch.addcmul(before[column], here, inverse)
        zero = None if zeros is None else zeros[column]
        fake_quantize(wanted, scales[column], zero, rounding.number_format, out=found)
        if before is None:
            torch.sub(here, found, out=step).mul_(inverse)
        else:
            torch.sub(found, before[column], out=step)
        if later := len(rows) - column - 1:
            felt, row = (x.narrow(-2, column + 1, later) for x in (local, rows[column]))
            felt.addcmul_(row, step.unsqueeze(-2), value=-1)


def in_columns(x: Tensor) -> Tensor:
    """A copy of `[..., out, n]` as `[..., n, out]`."""
    return x.mT.clone(memory_format=torch.contiguous_format)


def in_rows(x: Tensor) -> bool:
    """Whether a column of `[..., columns, out]` follows the one before it in memory."""
    columns, out = x.shape[-2:]
    return (out == 1 or x.stride(-1) == 1) and (columns == 1 or x.stride(-2) == out)


def batched(x: Tensor) -> Tensor:
    """One matrix as a batch of one; a batch of matrices as it is."""
    return x if x.dim() == 3 else x[None]
