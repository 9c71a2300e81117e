"""The walk of a tile in C (`columns.c`), where it runs on a CPU: some rows go through all columns of the tile at once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.column_tile import Rounding, batched, in_rows
from alphaquant.formats.grid_in_c import CODES, Grid, grid_of
from alphaquant.in_c import address, library, spread

TILE = 128
"""Columns of one call."""
ROWS = 64
"""Rows of a piece: a column of them is four vectors of AVX-512."""
MACROS = {"ROWS": ROWS, "TILE": TILE, "CODES": CODES}
_SOURCE = Path(__file__).with_name("columns.c")
_LEAST = 16
"""Pieces that repay another thread."""
_WITH_STRIDES = ("scale", "zero", "local", "before", "values", "steps")


class _Walk(ctypes.Structure):
    """`struct walk` of columns.c."""

    _fields_ = (
        ("grid", Grid),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("felt", "inverse", "group", *_WITH_STRIDES)),
        *((f"{name}_stride", ctypes.c_int64) for name in _WITH_STRIDES),
    )


def walk_tile(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    rounding: Rounding,
    values: Tensor,  # [..., columns, out]
    steps: Tensor,  # [..., columns, out]
) -> None:
    """Fill in `values` and `steps`, and leave in `local` what was rounded to the values.

    As `column_tile.walk_tile`, of up to `TILE` columns, at most one leading dimension and fp32; sums run in
    another order.
    """
    walk = library(_SOURCE, **MACROS).walk_tile
    matrices, columns, out = fitting(local, coupling, rounding.inverse, rounding.group)
    local, values, steps = (batched(x) for x in (local, values, steps))
    scale, zero, before = (
        None if x is None else batched(x if in_rows(x) else x.contiguous())
        for x in (rounding.scale, rounding.zero, rounding.before)
    )
    felt, inverse, group = (x.contiguous() for x in (coupling.mT, rounding.inverse, rounding.group))
    strided = (scale, zero, local, before, values, steps)
    places = (address(felt), address(inverse), address(group, torch.int64), *map(address, strided))
    strides = (0 if x is None else x.stride(0) for x in strided)
    given = _Walk(grid_of(rounding.number_format), out, columns, *places, *strides)
    spread(walk, ctypes.byref(given), matrices * -(-out // ROWS), _LEAST)


def fitting(x: Tensor, square: Tensor, *of_columns: Tensor) -> tuple[int, int, int]:
    """Matrices, columns and rows of `[..., columns, out]`.

    Raises ValueError where there are more columns than C has room for, or other matrices in the `[..., columns, columns]` and
    `[..., columns]` beside.
    """
    matrices, columns, out = batched(x).shape
    if columns > TILE:
        raise ValueError(f"{columns} columns do not fit into a tile of {TILE}")
    expected = {square.numel() // columns if columns else 0, *(one.numel() for one in of_columns)}
    if expected != {matrices * columns}:
        raise ValueError(f"{matrices} matrices of {columns} columns, and beside them others")
    return matrices, columns, out
