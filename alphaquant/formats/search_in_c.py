"""The search for scales in C (`search.c`), where it runs on a CPU: a group is read once for all candidates."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.formats.grid_in_c import CODES, Grid, grid_of
from alphaquant.formats.scales import scale_bounds
from alphaquant.formats.table import NumberFormat
from alphaquant.in_c import address, library, spread

_SOURCE = Path(__file__).with_name("search.c")
_LEAST = 1 << 16
"""Elements that repay another thread."""


class _Search(ctypes.Structure):
    """`struct search` of search.c."""

    _fields_ = (
        ("grid", Grid),
        *(
            (name, ctypes.c_int64)
            for name in ("width", "total", "per_matrix", "groups", "candidates", "refits")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("values", "weights", "scales", "zeros", "chosen", "moved")
        ),
        *((name, ctypes.c_float) for name in ("least_scale", "most_scale")),
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
    chosen = torch.empty(groups.shape[:-1], dtype=torch.int32)
    _run("best_candidates", groups, weights, scales, zeros, fmt, chosen=chosen)
    return chosen


def refitted(
    groups: Tensor,  # [..., out, groups, width]
    weights: Tensor | None,  # [..., 1, groups, width]
    scales: Tensor,  # [..., out, groups]
    zeros: Tensor | None,  # [..., out, groups]
    fmt: NumberFormat,
    times: int,
) -> Tensor:
    """bf16 scales, each moved so many times to the one of least squared error for its group's codes, while that is better."""
    moved = torch.empty(groups.shape[:-1], dtype=torch.float32)
    _run("refitted", groups, weights, scales, zeros, fmt, moved=moved, refits=times)
    return moved


def _run(
    name: str,
    groups: Tensor,
    weights: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    fmt: NumberFormat,
    *,
    chosen: Tensor | None = None,
    moved: Tensor | None = None,
    refits: int = 0,
) -> None:
    *_, out, count, width = groups.shape
    total = groups.numel() // width
    if weights is not None:
        weights = weights.expand(*groups.shape[:-3], 1, count, width)
    given = (None if x is None else x.contiguous() for x in (groups, weights, scales, zeros))
    held = (*given, chosen, moved)  # in memory until all is done
    sizes = (width, total, out * count, count, scales.numel() // total, refits)
    places = (*map(address, held[:4]), address(chosen, torch.int32), address(moved))
    search = _Search(grid_of(fmt), *sizes, *places, *scale_bounds(fmt))
    spread(
        getattr(library(_SOURCE, CODES=CODES), name),
        ctypes.byref(search),
        total,
        max(1, _LEAST // width),
    )
