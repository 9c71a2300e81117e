"""The search for scales as one kernel: a program tries every candidate on some groups, which it reads once.

In torch each candidate costs a dozen passes over the whole weight, and 42 of them are tried: on a GPU that was more
than all else that rounds a weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from alphaquant.formats.grid_kernel import nearest
from alphaquant.formats.kernels import codebook_table, grid_constants
from alphaquant.formats.table import NumberFormat

WIDEST = 1024
"""Elements of a group that fit into the registers of a program."""
_ELEMENTS, WARPS = 2048, 4
"""Elements of a program, and the warps that share them."""


@triton.jit(do_not_specialize=["total", "per_matrix", "groups", "candidates"])
def _search(
    values,
    weights,
    scales,
    zeros,
    table,
    chosen,
    total,
    per_matrix,
    groups,
    candidates,
    ASYMMETRIC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LOWEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Groups lie in a row `[total, WIDTH]`, candidates above each other `[candidates, total]`."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    inside = group < total
    element = tl.arange(0, PADDED)
    there = inside[:, None] & (element < WIDTH)[None, :]
    x = tl.load(values + group[:, None] * WIDTH + element[None, :], mask=there, other=0.0)
    if WEIGHTED:
        place = (group // per_matrix) * groups + group % groups
        weight = tl.load(weights + place[:, None] * WIDTH + element[None, :], mask=there, other=0.0)
    best = tl.zeros([GROUPS], tl.int32)
    least = tl.full([GROUPS], float("inf"), tl.float32)
    for candidate in range(candidates):
        at = candidate * total.to(tl.int64) + group
        scale = tl.load(scales + at, mask=inside, other=1.0)[:, None]
        zero = 0.0
        if ASYMMETRIC:
            zero = tl.load(zeros + at, mask=inside, other=0.0)[:, None]
        rounded = nearest(
            tl.math.div_rn(x, tl.broadcast_to(scale, x.shape)),
            zero,
            table,
            KIND,
            LOW,
            HIGH,
            LOWEST,
            MANTISSA,
            CODES,
        )
        difference = rounded * scale - x
        square = difference * difference
        if WEIGHTED:
            square *= weight
        error = tl.sum(square, 1)
        better = error < least
        least = tl.where(better, error, least)
        best = tl.where(better, candidate, best)
    tl.store(chosen + group, best, mask=inside)


def tile(width: int) -> dict[str, int]:
    """What the kernel is compiled for: groups of `width`, padded to a power of two, and how many a program takes."""
    padded = max(16, triton.next_power_of_2(width))
    return {"WIDTH": width, "PADDED": padded, "GROUPS": max(1, _ELEMENTS // padded)}


def best_candidates(
    groups: Tensor,  # [..., out, groups, width]
    weights: Tensor | None,  # [..., 1, groups, width]
    scales: Tensor,  # [candidates, ..., out, groups]
    zeros: Tensor | None,  # [candidates, ..., out, groups]
    fmt: NumberFormat,
) -> Tensor:
    """The candidate of least squared error, weighted if so, for each group `[..., out, groups]`; the first of equals.

    Groups have at most `WIDEST` elements; scales are effective ones.
    """
    *_, out, count, width = groups.shape
    sizes = tile(width)
    groups, scales = groups.contiguous(), scales.contiguous()
    if weights is not None:
        weights = weights.expand(*groups.shape[:-3], 1, count, width).contiguous()
    total = groups.numel() // width
    chosen = torch.empty(groups.shape[:-1], dtype=torch.int32, device=groups.device)
    with torch.cuda.device_of(groups):
        _search[(triton.cdiv(total, sizes["GROUPS"]),)](
            groups,
            groups if weights is None else weights,
            scales,
            scales if zeros is None else zeros.contiguous(),
            codebook_table(fmt, groups.device) if fmt.codebook else scales,
            chosen,
            total,
            out * count,
            count,
            len(scales),
            ASYMMETRIC=zeros is not None,
            WEIGHTED=weights is not None,
            **grid_constants(fmt),
            **sizes,
            num_warps=WARPS,
            enable_fp_fusion=False,  # a fused product would not be what is stored
        )
    return chosen
