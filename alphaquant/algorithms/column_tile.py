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
    zeros, before = (None if x is None else x.unbind(-2) for x in (rounding.zero, rounding.before))
    scales, inverses = rounding.scale.unbind(-2), rounding.inverse[..., None].unbind(-2)
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
