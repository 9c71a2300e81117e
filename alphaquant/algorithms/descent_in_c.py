"""A block's descent in C (`descent.c`), where it runs on a CPU: refinement reads and writes each element of a block once."""

from __future__ import annotations

import ctypes
from pathlib import Path

from alphaquant.algorithms.column_tile import batched
from alphaquant.algorithms.columns_in_c import MACROS, ROWS, fitting
from alphaquant.algorithms.descent import Block
from alphaquant.formats.grid_in_c import Grid, grid_of
from alphaquant.formats.scales import E4M3, scale_bounds
from alphaquant.in_c import address, library, spread

_SOURCE = Path(__file__).with_name("descent.c")
_LEAST = 4
"""Pieces that repay another thread."""
_SCALES = ("bfloat16", "e4m3", "e8m0")
_SIZES = ("scales", "rows", "columns", "width", "refits", "moves")
_STRIDED = ("scale", "zero", "values", "left")


class _Descent(ctypes.Structure):
    """`struct descent` of descent.c."""

    _fields_ = (
        ("grid", Grid),
        ("scale_grid", Grid),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_float) for name in ("least_scale", "most_scale")),
        *((name, ctypes.c_void_p) for name in ("felt", "inverse", "factor", "slope", *_STRIDED)),
        *((f"{name}_stride", ctypes.c_int64) for name in _STRIDED),
    )


def descend(block: Block, *, refits: bool, moves: bool) -> None:
    """As `descent.descend`, of at most 128 columns and one leading dimension, in fp32; sums run in another order."""
    fmt = block.number_format
    matrices, columns, out = fitting(block.values, block.square, block.inverse)
    read = (block.square, block.inverse, block.factor, block.slope)
    held = tuple(x.contiguous() for x in read)  # in memory until all is done
    strided = tuple(
        None if x is None else batched(x)
        for x in (block.scale, block.zero, block.values, block.left)
    )
    given = _Descent(
        *(grid_of(fmt), grid_of(E4M3), _SCALES.index(str(fmt.scale_type))),
        *(out, columns, block.width, refits, moves),
        *scale_bounds(fmt),
        *map(address, (*held, *strided)),
        *(0 if x is None else x.stride(0) for x in strided),
    )
    descends = library(_SOURCE, **MACROS).descend
    spread(descends, ctypes.byref(given), matrices * -(-out // ROWS), _LEAST)
