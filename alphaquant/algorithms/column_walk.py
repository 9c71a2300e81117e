"""Walking the columns of a block, tile by tile: launch by launch, or in one kernel where a GPU can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from alphaquant.algorithms import column_tile
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.formats.grid import fused
from alphaquant.linalg.products import take_product
from alphaquant.models.device import torch_threads

Enter = Callable[[int], None]
_ALONE = 8192
"""Elements of a column, in all matrices, up to which one core of a CPU walks: a second one makes it slower."""


def walk_columns(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    rounding: Rounding,
    *,
    group: int | None = None,
    enter: Enter | None = None,
) -> tuple[Tensor, Tensor]:
    """The values that the columns are rounded to and the steps that this takes, both `[..., columns, out]`.

    Each step times its row of `coupling` is taken from the later columns of `local`, in place, before they
    are rounded; those in one tile see it at once, the others when the tile is through. `enter` is called
    with the first column of every `group` when all that comes before has been taken from the group; it may
    change the group's scales in place.
    """
    values, steps = torch.empty_like(local), torch.empty_like(local)
    columns = local.shape[-2]
    walk_tile, tile = _walker(local, rounding)
    alone = not local.is_cuda and local.numel() <= _ALONE * columns
    start = 0
    while start < columns:
        stop = min(start + tile, columns)
        if group is not None and enter is not None:
            stop = min(stop, (start // group + 1) * group)
            if start % group == 0:
                enter(start)
        inside, later = slice(start, stop), slice(stop, columns)
        with torch_threads(1) if alone else contextlib.nullcontext():
            walk_tile(
                local[..., inside, :],
                coupling[..., inside, inside],
                rounding.part(inside),
                values[..., inside, :],
                steps[..., inside, :],
            )
            if stop < columns:
                take_product(
                    local[..., later, :], coupling[..., inside, later].mT, steps[..., inside, :]
                )
        start = stop
    return values, steps


def _walker(local: Tensor, rounding: Rounding) -> tuple[Callable[..., None], int]:
    """What walks a tile, and how many columns it takes at once."""
    if fused(local):
        from alphaquant.algorithms import column_kernel

        if column_kernel.runs(local, rounding):
            return column_kernel.walk_tile, column_kernel.TILE
    return column_tile.walk_tile, column_tile.TILE
