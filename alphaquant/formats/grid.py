"""One rounding rule for every format: to the nearest element, ties to the even code, saturating.

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
    x = x.clamp(-fmt.max_value, fmt.max_value)
    if fmt.kind == "none":
        return x.to(torch.bfloat16).float()
    # The step is a power of two: the value's own exponent field, floored at the smallest normal, less the mantissa.
    lowest = (fmt.min_exponent + _FP32_BIAS) << _FRACTION_BITS
    exponent = x.view(torch.int32).bitwise_and(_EXPONENT_MASK).clamp_(min=lowest)
    step = exponent.sub_(fmt.mantissa_bits << _FRACTION_BITS).view(torch.float32)
    return x.div_(step).round_().mul_(step)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None, fmt: NumberFormat) -> Tensor:
    """Values that `fmt` stores for `x` under broadcastable fp32 scales and zero points, in fp32.

    GPTQ calls this once per column, so it is a handful of kernels and checks nothing.
    """
    x = x.detach().float() / scale
    if zero is None:
        return round_to_grid(x, fmt).mul_(scale)
    # Round before the zero point is added: adding first could move a tie.
    return x.round_().add_(zero).clamp_(fmt.min_value, fmt.max_value).sub_(zero).mul_(scale)


def to_codes(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The uint8 code of the element nearest to each value: q - qmin for ints, the OCP bit pattern for floats."""
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
    """The fp32 value of every code of a float format."""
    return torch.tensor(code_values(fmt), dtype=torch.float32, device=device)
