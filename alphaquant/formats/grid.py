"""One rounding rule for every format: to the nearest element, ties to the even code, saturating.

In a codebook ties go down, as in bitsandbytes.

Rounding is exact in fp32. Where `ml_dtypes` turns an input past the largest element into NaN or infinity, this
saturates, as OCP MX v1.0 asks of conversions of weights.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from alphaquant.formats.table import NumberFormat, code_values

_EXPONENT_MASK = 0x7F800000
_FRACTION_BITS = 23
_FP32_BIAS = 127


def round_to_grid(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The element of `fmt` nearest to each value, in fp32. NaN stays NaN; floats keep the sign of zero."""
    x = x.detach().float()
    if fmt.is_integer:
        return x.round().clamp_(fmt.min_value, fmt.max_value)
    if fmt.codebook is not None:
        return torch.where(x.isnan(), x, from_codes(_nearest_code(x, fmt), fmt))
    x = x.clamp(-fmt.max_value, fmt.max_value)
    if fmt.kind == "none":
        return x.to(torch.bfloat16).float()
    # The step is a power of two: the value's own exponent field, floored at the smallest normal, less the mantissa.
    lowest = (fmt.min_exponent + _FP32_BIAS) << _FRACTION_BITS
    exponent = x.view(torch.int32).bitwise_and(_EXPONENT_MASK).clamp_(min=lowest)
    step = exponent.sub_(fmt.mantissa_bits << _FRACTION_BITS).view(torch.float32)
    return x.div_(step).round_().mul_(step)


def all_finite(x: Tensor) -> bool:
    """Whether there is no NaN and no infinity."""
    # a sum is finite only where all that was added is, and takes no memory; a large one may overflow
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def neighbours(x: Tensor, fmt: NumberFormat) -> tuple[Tensor, Tensor]:
    """The largest element not above each value and the smallest above it, in fp32; both are one where the grid ends."""
    grid = _sorted_elements(fmt, x.device)
    above = torch.bucketize(x.detach().float(), grid, right=True)
    return grid[(above - 1).clamp_(min=0)], grid[above.clamp(max=len(grid) - 1)]


def fake_quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None, fmt: NumberFormat, *, out: Tensor | None = None
) -> Tensor:
    """Values that `fmt` stores for `x` under broadcastable fp32 scales and zero points, in fp32, in `out` if there is one.

    GPTQ calls this once per column, so it is a handful of kernels and checks nothing.
    """
    x = x.detach().float() / scale
    if not fmt.is_integer:
        x = round_to_grid(x, fmt)
    elif zero is None:
        x.round_().clamp_(fmt.min_value, fmt.max_value)
    else:  # added when it is rounded: before, it could move a tie
        x.round_().add_(zero).clamp_(fmt.min_value, fmt.max_value).sub_(zero)
    return torch.mul(x, scale, out=x if out is None else out)


def to_codes(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The uint8 code of the element nearest to each value: q - qmin for ints, the OCP bit pattern for floats, a place in a codebook."""
    if fmt.codebook is not None:
        return _nearest_code(x.detach().float(), fmt)
    values = round_to_grid(x, fmt)
    if fmt.is_integer:
        return values.sub_(fmt.min_value).to(torch.uint8)
    sign = torch.signbit(values).to(torch.int32) << (fmt.bits - 1)
    values = values.abs_()
    normal = values.view(torch.int32) >> (_FRACTION_BITS - fmt.mantissa_bits)
    normal = normal - ((_FP32_BIAS - fmt.bias) << fmt.mantissa_bits)
    small = values.mul(2.0 ** (fmt.mantissa_bits - fmt.min_exponent)).to(torch.int32)
    code = torch.where(values < 2.0**fmt.min_exponent, small, normal)
    return (code | sign).to(torch.uint8)


def from_codes(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """The fp32 element of each uint8 code."""
    if fmt.is_integer:
        return codes.float().add_(fmt.min_value)
    table = code_table(fmt, codes.device)
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


@cache
def code_table(fmt: NumberFormat, device: torch.device) -> Tensor:
    """The fp32 value of every code of a float format or codebook."""
    return torch.tensor(code_values(fmt), dtype=torch.float32, device=device)


@cache
def _sorted_elements(fmt: NumberFormat, device: torch.device) -> Tensor:
    finite = {value for value in code_values(fmt) if abs(value) <= -fmt.min_value}
    return torch.tensor(sorted(finite), dtype=torch.float32, device=device)


def _nearest_code(x: Tensor, fmt: NumberFormat) -> Tensor:
    return torch.bucketize(x, codebook_borders(fmt, x.device)).to(torch.uint8)


@cache
def codebook_borders(fmt: NumberFormat, device: torch.device) -> Tensor:
    """Between the elements of a codebook: what lies above belongs to the next one."""
    table = code_table(fmt, device).double()
    return ((table[1:] + table[:-1]) / 2).float()
