"""The walk of a tile as one kernel: a program takes some rows of one matrix through all columns of the tile.

In torch each column costs some ten launches of kernels that have next to nothing to do. Here the steps of a
program's rows stay in registers, and a column asks them all, in one sum, what they take from it. Only a GPU runs this,
and nothing else imports it: triton comes with CUDA builds of torch, and the package does not need it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from alphaquant.algorithms import column_tile
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.formats.grid_kernel import codebook_table, grid_constants, nearest, trusted
from alphaquant.formats.table import NumberFormat

TILE = 128
"""Columns of one launch."""
ROWS, WARPS = 32, 4
"""Rows of one program and the warps that share them."""
_SIZES = ["rows", "columns"]
_STRIDES = [f"{name}_stride" for name in ("local", "scale", "zero", "before", "values", "steps")]


@triton.jit(do_not_specialize=_SIZES + _STRIDES)  # one compiled kernel serves every shape
def _walk(
    local,
    coupling,
    inverse,
    scale,
    zero,
    before,
    table,
    values,
    steps,
    rows,
    columns,
    local_stride,
    scale_stride,
    zero_stride,
    before_stride,
    values_stride,
    steps_stride,
    ASYMMETRIC: tl.constexpr,
    MOVING: tl.constexpr,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LOWEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    CODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Strides are those between matrices, in elements; `coupling [n, COLUMNS, COLUMNS]` lists what a column feels."""
    matrix = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    earlier = tl.arange(0, COLUMNS)
    coupling += matrix * COLUMNS * COLUMNS + earlier
    inverse += matrix * COLUMNS
    local += matrix * local_stride + row
    scale += matrix * scale_stride + row
    zero += matrix * zero_stride + row
    before += matrix * before_stride + row
    values += matrix * values_stride + row
    steps += matrix * steps_stride + row
    taken = tl.zeros([COLUMNS, ROWS], tl.float32)
    for column in range(columns):
        at = column * rows
        felt = tl.load(coupling + column * COLUMNS)
        here = tl.load(local + at, mask=inside, other=0.0)
        # steps of later columns are still zero, so the sum needs no bound
        here -= tl.sum(taken * felt[:, None], 0)
        factor = tl.load(inverse + column)
        unit = tl.load(scale + at, mask=inside, other=1.0)
        shift = 0.0
        if ASYMMETRIC:
            shift = tl.load(zero + at, mask=inside, other=0.0)
        wanted = here
        if MOVING:
            stood = tl.load(before + at, mask=inside, other=0.0)
            wanted = stood + here * factor
        element = nearest(
            tl.math.div_rn(wanted, unit),
            shift,
            table,
            KIND,
            LOW,
            HIGH,
            LOWEST,
            MANTISSA,
            CODES,
        )
        found = element * unit
        step = found - stood if MOVING else (here - found) * factor
        taken = tl.where(earlier[:, None] == column, step[None, :], taken)
        tl.store(local + at, here, mask=inside)
        tl.store(values + at, found, mask=inside)
        tl.store(steps + at, step, mask=inside)


def walk_tile(
    local: Tensor,  # [..., columns, out]
    coupling: Tensor,  # [..., columns, columns]
    rounding: Rounding,
    values: Tensor,  # [..., columns, out]
    steps: Tensor,  # [..., columns, out]
    rows: int = ROWS,
    warps: int = WARPS,
) -> None:
    """Fill in `values` and `steps`, and leave in `local` what was rounded to the values.

    As `column_tile.walk_tile`, of up to `TILE` columns, at most one leading dimension and fp32; sums run in
    another order.
    """
    columns, out = local.shape[-2:]
    fmt = rounding.number_format
    local, values, steps = (_batched(x) for x in (local, values, steps))
    scale, zero, before = (
        local if x is None else _batched(x if _in_rows(x) else x.contiguous())
        for x in (rounding.scale, rounding.zero, rounding.before)
    )
    felt = local.new_zeros(len(local), TILE, TILE)
    felt[:, :columns, :columns] = coupling.mT
    inverse = local.new_zeros(len(local), TILE)
    inverse[:, :columns] = rounding.inverse
    table = codebook_table(fmt, local.device) if fmt.codebook else inverse
    with torch.cuda.device_of(local):
        _walk[(triton.cdiv(out, rows), len(local))](
            *(local, felt, inverse, scale, zero, before, table, values, steps),
            *(out, columns),
            *(x.stride(0) for x in (local, scale, zero, before, values, steps)),
            ASYMMETRIC=rounding.zero is not None,
            MOVING=rounding.before is not None,
            **grid_constants(fmt),
            COLUMNS=TILE,
            ROWS=rows,
            num_warps=warps,
            enable_fp_fusion=False,  # a fused product would not be what is stored
        )


def _in_rows(x: Tensor) -> bool:
    """Whether a column `[..., columns, out]` follows the one before it in memory."""
    columns, out = x.shape[-2:]
    return (out == 1 or x.stride(-1) == 1) and (columns == 1 or x.stride(-2) == out)


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x[None]


def runs(local: Tensor, rounding: Rounding) -> bool:
    """Whether the kernel serves these."""
    fmt, device = rounding.number_format, local.device
    if fmt.kind == "none" or local.dim() > 3 or local.dtype != torch.float32:
        return False
    if not _in_rows(local):
        return False
    asymmetric, moving = rounding.zero is not None, rounding.before is not None
    return trusted(
        device,
        ("columns", fmt, asymmetric, moving),
        lambda: _agrees(device, fmt, asymmetric, moving),
    )


def _agrees(device: torch.device, fmt: NumberFormat, asymmetric: bool, moving: bool) -> bool:
    """Whether kernel and torch round one small problem alike; rare ties may part, as sums differ in order."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    shape = (2, 32, 48)
    scale = (normal(*shape).abs() + 0.5) * (2 / fmt.max_value)
    rounding = Rounding(
        fmt,
        scale,
        normal(*shape).round() if asymmetric else None,
        normal(2, 32).abs() + 0.5,
        normal(*shape) if moving else None,
    )
    start, coupling = normal(*shape), normal(2, 32, 32) / 32
    found = []
    for walk in (walk_tile, column_tile.walk_tile):
        values = torch.empty_like(start)
        walk(start.clone(), coupling, rounding, values, torch.empty_like(start))
        found.append(values)
    return bool((found[0] == found[1]).float().mean() > 0.98)
