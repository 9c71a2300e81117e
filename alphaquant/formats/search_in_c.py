"""The search for scales in C (`search.c`), where it runs on a CPU: a group is read once for all candidates."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.formats.grid_in_c import Grid, grid_of
from alphaquant.formats.table import NumberFormat
from alphaquant.in_c import address, library, spread

_SOURCE = Path(__file__).with_name("search.c")
_LEAST = 1 << 16
"""Elements that repay another thread."""


class _Search(ctypes.Structure):
    """`struct search` of search.c."""

    _fields_ = (
        ("grid", Grid),
        *((name, ctypes.c_int64) for name in ("width", "total", "per_matrix", "groups", "tried")),
        *((name, ctypes.c_void_p) for name in ("values", "weights", "scales", "zeros", "chosen")),
    )


def best_candidates(
    groups: Tensor,  # [..., out, groups, width]
    weights: Tensor | None,  # [..., 1, groups, width]
    scales: Tensor,  # [candidates, ..., out, groups]
    zeros: Tensor | None,  # [candidates, ..., out, groups]
    fmt: NumberFormat,
) -> Tensor:
    """The candidate of least squared error, weighted if so, for each group `[..., out, groups]`; the first of equals.

    Scales are effective ones.
    """
    choose = library(_SOURCE).best_candidates
    *_, out, count, width = groups.shape
    groups, scales = groups.contiguous(), scales.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    if weights is not None:
        weights = weights.expand(*groups.shape[:-3], 1, count, width).contiguous()
    chosen = torch.empty(groups.shape[:-1], dtype=torch.int32)
    total = chosen.numel()
    sizes = (width, total, out * count, count, len(scales))
    places = (address(x) for x in (groups, weights, scales, zeros, chosen))
    search = ctypes.byref(_Search(grid_of(fmt), *sizes, *places))
    spread(choose, search, total, max(1, _LEAST // width))
    return chosen
