"""Walking the columns of a block, tile by tile: by a kernel of ours, or call by call in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from alphaquant.algorithms import column_tile, columns_in_c
from alphaquant.algorithms.column_tile import Rounding, in_rows
from alphaquant.formats.kernels import fused, trusted
from alphaquant.formats.table import NumberFormat
from alphaquant.linalg.products import take_product
from alphaquant.models.device import torch_threads

Enter = Callable[[int], None]
_WalkTile = Callable[..., None]
_ALONE = 8192
"""Elements of a column, in all matrices, up to which one core of a CPU walks in torch: a second one makes it slower."""


def walk_columns(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    rounding: Rounding,
    values: Tensor,  # [..., columns, out]
    *,
    group: int | None = None,
    enter: Enter | None = None,
) -> Tensor:
    """Fill in the `values` that the columns are rounded to, and return the steps that this takes `[..., columns, out]`.

    Each step times its row of `coupling` is taken from the later columns of `local`, in place, before they
    are rounded; those in one tile see it at once, the others when the tile is through. `enter` is called
    with the first column of every `group` when all that comes before has been taken from the group; it may
    change the group's scales in place.
    """
    steps = torch.empty_like(local)
    columns = local.shape[-2]
    walk_tile, tile = _walker(local, rounding)
    in_torch = walk_tile is column_tile.walk_tile
    alone = in_torch and not local.is_cuda and local.numel() <= _ALONE * columns
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
    return steps


def _walker(local: Tensor, rounding: Rounding) -> tuple[_WalkTile, int]:
    """What walks a tile, and how many columns it takes at once."""
    if not local.is_cuda:
        if _serves(columns_in_c.walk_tile, local, rounding):
            return columns_in_c.walk_tile, columns_in_c.TILE
    elif fused(local):
        from alphaquant.algorithms import column_kernel

        if _serves(column_kernel.walk_tile, local, rounding):
            return column_kernel.walk_tile, column_kernel.TILE
    return column_tile.walk_tile, column_tile.TILE


def _serves(walk: _WalkTile, local: Tensor, rounding: Rounding) -> bool:
    """Whether a kernel walks these."""
    fmt, device = rounding.number_format, local.device
    if fmt.kind == "none" or local.dim() > 3 or local.dtype != torch.float32:
        return False
    if not in_rows(local):
        return False
    asymmetric, moving = rounding.zero is not None, rounding.before is not None
    return trusted(
        device,
        ("columns", fmt, asymmetric, moving),
        lambda: _agrees(walk, device, fmt, asymmetric, moving),
    )


def _agrees(
    walk: _WalkTile, device: torch.device, fmt: NumberFormat, asymmetric: bool, moving: bool
) -> bool:
    """Whether kernel and torch round one small problem alike; rare ties may part, as sums differ in order."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(device)

    shape, groups = (2, 32, 48), (2, 5, 48)
    rounding = Rounding(
        fmt,
        (normal(*groups).abs() + 0.5) * (2 / fmt.max_value),
        normal(*groups).round() if asymmetric else None,
        torch.randint(0, 5, (2, 32), generator=generator).to(device),
        normal(2, 32).abs() + 0.5,
        normal(*shape) if moving else None,
    )
    start, coupling = normal(*shape), normal(2, 32, 32) / 32
    found = []
    for either in (walk, column_tile.walk_tile):
        values = torch.empty_like(start)
        either(start.clone(), coupling, rounding, values, torch.empty_like(start))
        found.append(values)
    return bool((found[0] == found[1]).float().mean() > 0.98)
