"""The rounding rule inside kernels: `fake_quantize` of `grid`, to the bit, in Triton.

Only a GPU runs this, and nothing else imports it: triton comes with CUDA builds of torch, and the package does not
need it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_even(x):
    """The integer nearest to each |x| below 2^22, ties to even; keeps the sign of zero."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    # from 1.5 * 2^23 on, fp32 holds integers alone, and its own rounding does the work
    whole = (tl.abs(x) + 12582912.0) - 12582912.0
    return (whole.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def nearest(
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
        element = half_even(tl.minimum(tl.maximum(x, LOW - zero), HIGH - zero))
    else:
        x = tl.minimum(tl.maximum(x, LOW), HIGH)
        exponent = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, LOWEST)
        step = (exponent - (MANTISSA << 23)).to(tl.float32, bitcast=True)
        element = half_even(tl.math.div_rn(x, step)) * step
    return element
