"""Walking the columns of a block: each is decided on, and what that changes is taken from those to come.

Columns lie in rows of memory here (`[..., columns, out]`), so that a column is read and written in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Columns whose effect on each other is applied one by one; beyond them it is one product of matrices. 8 to 32 are alike.
TILE = 16


def walk_columns(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    decide: Callable[[int, Tensor], Tensor],
    tile: int = TILE,
) -> Tensor:
    """The steps `[..., columns, out]` that `decide` takes, given a column's number and its values `[..., out]`.

    Each step times its row of `coupling` is taken from the later columns of `local`, in place, before they
    are decided on; those in one `tile` see it at once, the others when the tile is through.
    """
    steps = torch.empty_like(local)
    columns = local.shape[-2]
    for start in range(0, columns, tile):
        stop = min(start + tile, columns)
        for column in range(start, stop):
            step = decide(column, local[..., column, :])
            steps[..., column, :] = step
            if column + 1 < stop:
                row = coupling[..., column, column + 1 : stop]
                local[..., column + 1 : stop, :].addcmul_(
                    row[..., :, None], step[..., None, :], value=-1
                )
        if stop < columns:
            local[..., stop:, :] -= coupling[..., start:stop, stop:].mT @ steps[..., start:stop, :]
    return steps
