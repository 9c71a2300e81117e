"""The rounding rule inside kernels: `fake_quantize` of `grid`, to the bit, in Triton.

Only a GPU runs this, and nothing else imports it: triton comes with CUDA builds of torch, and the package does not
need it. `trusted` decides whether a kernel serves on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alphaquant.formats.grid import code_table, codebook_borders
from alphaquant.formats.table import NumberFormat
from alphaquant.progress import reporter


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


def grid_constants(fmt: NumberFormat) -> dict[str, Any]:
    """What `nearest` is compiled for: the grid of `fmt`."""
    kind = "codebook" if fmt.codebook else "int" if fmt.is_integer else "float"
    return {
        "KIND": kind,
        "LOW": float(fmt.min_value),
        "HIGH": float(fmt.max_value),
        "LOWEST": (fmt.min_exponent + 127) << 23 if kind == "float" else 0,
        "MANTISSA": fmt.mantissa_bits,
        "CODES": len(fmt.codebook or ()),
    }


@cache
def codebook_table(fmt: NumberFormat, device: torch.device) -> Tensor:
    """The elements of a codebook, and the borders between them."""
    return torch.cat([code_table(fmt, device), codebook_borders(fmt, device)])


_tried: set[tuple[Any, ...]] = set()
_broken: set[torch.device] = set()


def trusted(device: torch.device, variant: tuple[Any, ...], agrees: Callable[[], bool]) -> bool:
    """Whether a kernel serves on a device; `agrees` compiles a variant of it and holds it against torch, once.

    Where it cannot be compiled, for want of a C compiler say, or is wrong, the user is told, and no kernel of ours
    is tried again on that device.
    """
    if device in _broken:
        return False
    if (device, *variant) in _tried:
        return True
    try:
        works, found = agrees(), "its values are not those of torch"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - compilers, drivers and triton share no base class
        works, found = False, f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if works:
        _tried.add((device, *variant))
    else:
        _broken.add(device)
        reporter().note(
            f"the fused kernels do not run on {device} ({variant[0]}: {found}); torch's take their place, with the same "
            "results, several times slower: triton needs a C compiler and a GPU that it knows"
        )
    return works
