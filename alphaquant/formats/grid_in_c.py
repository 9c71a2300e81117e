"""What grid.h knows of a number format."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from alphaquant.formats.grid import code_table, codebook_borders
from alphaquant.formats.kernels import grid_constants
from alphaquant.formats.table import NumberFormat
from alphaquant.in_c import address

CODES = 16
"""Elements of a codebook, at most: grid.h looks through so many, since a fixed number becomes vectors."""
_CPU = torch.device("cpu")


class Grid(ctypes.Structure):
    """`struct grid` of grid.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("lowest", ctypes.c_int32),
        ("mantissa", ctypes.c_int32),
        ("table", ctypes.c_void_p),
    )


def grid_of(fmt: NumberFormat) -> Grid:
    """The grid of a format."""
    constants = grid_constants(fmt)
    kind = ("int", "float", "codebook").index(constants["KIND"])
    bounds = (constants["LOW"], constants["HIGH"], constants["LOWEST"], constants["MANTISSA"])
    return Grid(kind, *bounds, address(_table(fmt)) if fmt.codebook else None)


@cache
def _table(fmt: NumberFormat) -> Tensor:
    """The elements of a codebook, then the borders between them; behind the last one nothing is reached."""
    table = torch.full((2 * CODES,), math.inf, dtype=torch.float32)
    elements = code_table(fmt, _CPU)
    table[: len(elements)] = elements
    table[CODES : CODES + len(elements) - 1] = codebook_borders(fmt, _CPU)
    return table
