"""The walk of a tile as one kernel: a program takes some rows of one matrix through all columns of the tile.

In torch each column costs some ten launches of kernels that have next to nothing to do. Here the steps of a
program's rows stay in registers, and a column asks them all, in one sum, what they take from it. Only a GPU runs this,
and nothing else imports it: triton comes with CUDA builds of torch, and the package does not need it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alphaquant.algorithms import column_tile
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.formats.grid import code_table, codebook_borders
from alphaquant.formats.table import NumberFormat
from alphaquant.progress import reporter

TILE = 128
"""Columns of one launch."""
ROWS, WARPS = 32, 4
"""Rows of one program and the warps that share them."""
_SIZES = ["rows", "columns"]
_STRIDES = [f"{name}_stride" for name in ("local", "scale", "zero", "before", "values", "steps")]


@triton.jit
def _half_even(x):
    """The integer nearest to each |x| below 2^22, ties to even; keeps the sign of zero."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    # from 1.5 * 2^23 on, fp32 holds integers alone, and its own rounding does the work
    whole = (tl.abs(x) + 12582912.0) - 12582912.0
    return (whole.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(
    x,
    zero,
    table,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LOWEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    CODES: tl.constexpr,
):
    """The element of the grid nearest to each value, zero point taken off: `fake_quantize` between its scales."""
    if KIND == "codebook":
        element = tl.zeros_like(x) + tl.load(table)
        for code in tl.static_range(1, CODES):
            border = tl.load(table + CODES + code - 1)
            element = tl.where(x > border, tl.load(table + code), element)
    elif KIND == "int":
        # clamped first: the bounds are integers, so this is the same, and what is rounded stays small
        element = _half_even(tl.minimum(tl.maximum(x, LOW - zero), HIGH - zero))
    else:
        x = tl.minimum(tl.maximum(x, LOW), HIGH)
        exponent = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, LOWEST)
        step = (exponent - (MANTISSA << 23)).to(tl.float32, bitcast=True)
        element = _half_even(tl.math.div_rn(x, step)) * step
    return element


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
        element = _nearest(
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


def constants(fmt: NumberFormat) -> dict[str, Any]:
    """What the kernel is compiled for: the grid of `fmt`."""
    kind = "codebook" if fmt.codebook else "int" if fmt.is_integer else "float"
    return {
        "KIND": kind,
        "LOW": float(fmt.min_value),
        "HIGH": float(fmt.max_value),
        "LOWEST": (fmt.min_exponent + 127) << 23 if kind == "float" else 0,
        "MANTISSA": fmt.mantissa_bits,
        "CODES": len(fmt.codebook or ()),
    }


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
        local if x is None else _batched(x)
        for x in (rounding.scale, rounding.zero, rounding.before)
    )
    felt = local.new_zeros(len(local), TILE, TILE)
    felt[:, :columns, :columns] = coupling.mT
    inverse = local.new_zeros(len(local), TILE)
    inverse[:, :columns] = rounding.inverse
    table = _table(fmt, local.device) if fmt.codebook else inverse
    with torch.cuda.device_of(local):
        _walk[(triton.cdiv(out, rows), len(local))](
            *(local, felt, inverse, scale, zero, before, table, values, steps),
            *(out, columns),
            *(x.stride(0) for x in (local, scale, zero, before, values, steps)),
            ASYMMETRIC=rounding.zero is not None,
            MOVING=rounding.before is not None,
            **constants(fmt),
            COLUMNS=TILE,
            ROWS=rows,
            num_warps=warps,
            enable_fp_fusion=False,  # a fused product would not be what is stored
        )


@cache
def _table(fmt: NumberFormat, device: torch.device) -> Tensor:
    """The elements of a codebook, and the borders between them."""
    return torch.cat([code_table(fmt, device), codebook_borders(fmt, device)])


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x[None]


_tried: set[tuple[Any, ...]] = set()
_broken: set[torch.device] = set()


def runs(local: Tensor, rounding: Rounding) -> bool:
    """Whether the kernel serves these; the first time that it should, it is compiled and held against torch.

    Where it cannot be compiled, for want of a C compiler say, or is wrong, the user is told once.
    """
    fmt, device = rounding.number_format, local.device
    if device in _broken or fmt.kind == "none" or local.dim() > 3 or local.dtype != torch.float32:
        return False
    asymmetric, moving = rounding.zero is not None, rounding.before is not None
    variant = (device, fmt, asymmetric, moving)
    if variant in _tried:
        return True
    try:
        agrees = _agrees(device, fmt, asymmetric, moving)
        found = "its values are not those of torch"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - compilers, drivers and triton share no base class
        agrees, found = False, f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if agrees:
        _tried.add(variant)
    else:
        _broken.add(device)
        reporter().note(
            f"the fused column kernel does not run on {device} ({found}); columns are rounded launch by launch, "
            "with the same results, several times slower: triton needs a C compiler and a GPU that it knows"
        )
    return agrees


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
