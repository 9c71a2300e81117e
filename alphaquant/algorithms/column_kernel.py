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

from alphaquant.algorithms.column_tile import Rounding, batched, in_rows
from alphaquant.formats.grid_kernel import nearest
from alphaquant.formats.kernels import codebook_table, grid_constants

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
    group,
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
    group += matrix * columns
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
        shared = tl.load(group + column) * rows
        unit = tl.load(scale + shared, mask=inside, other=1.0)
        shift = 0.0
        if ASYMMETRIC:
            shift = tl.load(zero + shared, mask=inside, other=0.0)
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
    local, values, steps = (batched(x) for x in (local, values, steps))
    scale, zero, before = (
        local if x is None else batched(x if in_rows(x) else x.contiguous())
        for x in (rounding.scale, rounding.zero, rounding.before)
    )
    felt = local.new_zeros(len(local), TILE, TILE)
    felt[:, :columns, :columns] = coupling.mT
    inverse = local.new_zeros(len(local), TILE)
    inverse[:, :columns] = rounding.inverse
    table = codebook_table(fmt, local.device) if fmt.codebook else inverse
    with torch.cuda.device_of(local):
        _walk[(triton.cdiv(out, rows), len(local))](
            *(local, felt, inverse, rounding.group.contiguous(), scale, zero, before, table),
            *(values, steps),
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
