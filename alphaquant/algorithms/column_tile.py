"""A tile of columns: each is rounded in turn, and what that changes is taken from those to come.

Columns lie in rows of memory here (`[..., columns, out]`), so that a column is read and written in one piece.
This is the walk in torch: on the CPU, and what the fused kernel of `column_kernel` must agree with.
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
    """# [..., columns, out]"""
    zero: Tensor | None
    """# [..., columns, out]"""
    inverse: Tensor
    """What turns an error into a step, or a slope into the way to its minimum # [..., columns]"""
    before: Tensor | None = None
    """None while values are rounded themselves, and a step is the error that is left times `inverse`. Where elements
    stand already, the walked values are the slopes that lead on from there, and a step is an element's move
    # [..., columns, out]"""

    def part(self, columns: slice) -> Rounding:
        """The rounding of some columns."""
        zero, before = (None if x is None else x[..., columns, :] for x in (self.zero, self.before))
        scale, inverse = self.scale[..., columns, :], self.inverse[..., columns]
        return Rounding(self.number_format, scale, zero, inverse, before)

    def step(self, column: int, local: Tensor) -> tuple[Tensor, Tensor]:
        """The rounded values of a column, and the step that this is, from its walked values; all `[..., out]`."""
        inverse = self.inverse[..., column, None]
        before = None if self.before is None else self.before[..., column, :]
        wanted = local if before is None else torch.addcmul(before, local, inverse)
        zero = None if self.zero is None else self.zero[..., column, :]
        found = fake_quantize(wanted, self.scale[..., column, :], zero, self.number_format)
        return found, (local - found).mul_(inverse) if before is None else found - before


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
    columns = local.shape[-2]
    for column in range(columns):
        found, step = rounding.step(column, local[..., column, :])
        values[..., column, :], steps[..., column, :] = found, step
        if column + 1 < columns:
            row = coupling[..., column, column + 1 :]
            local[..., column + 1 :, :].addcmul_(row[..., :, None], step[..., None, :], value=-1)
