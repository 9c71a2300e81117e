"""Every number format is a row: the grid of its elements and the scale that groups of them share.

Element grids follow the OCP Microscaling specification v1.0 (E2M1, E2M3, E3M2, E4M3, E5M2); E4M3 is the finite
variant (`fn`). A row may also list its elements: nf4. Imports no torch, so that configs and plans can be checked without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from alphaquant.errors import FormatError, nearest

Kind = Literal["int", "float", "mx", "nv", "none"]
ScaleType = Literal["bfloat16", "e8m0", "e4m3"]
E8M0Rule = Literal["floor", "even", "rceil"]
ScaleRule = Literal["range", "absmax"] | E8M0Rule

SCALE_BITS: dict[ScaleType | None, int] = {"bfloat16": 16, "e8m0": 8, "e4m3": 8, None: 0}


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A finite grid of values and the type of the scale that a group of elements shares."""

    name: str
    bits: int
    """Stored bits of one element."""
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max_value: float
    """Largest finite element; larger inputs saturate."""
    kind: Kind
    """int and float: any group size. mx, nv: the format fixes the group, nv has a scale of the matrix on top. none: kept, no scale."""
    scale_type: ScaleType | None
    group_size: int | None
    """Elements per scale where the format fixes it."""
    scale_rule: ScaleRule
    """How a group's scale follows from its largest magnitude; see `alphaquant.formats.scales`."""
    codebook: tuple[float, ...] | None = None
    """The elements by code, rising, where they follow no rule of exponents."""

    @property
    def is_integer(self) -> bool:
        """Whether elements are two's complement integers."""
        return self.kind == "int"

    @property
    def min_value(self) -> float:
        """Smallest element: one step further than the largest for integers, its mirror for floats."""
        return -self.max_value - 1 if self.is_integer else -self.max_value

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest element: emax of the OCP specification."""
        return math.frexp(self.max_value)[1] - 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal element; below it the step no longer shrinks."""
        return 1 - self.bias

    @property
    def scale_bits(self) -> int:
        """Stored bits of one scale."""
        return SCALE_BITS[self.scale_type]


def _int(bits: int) -> NumberFormat:
    top = float(2 ** (bits - 1) - 1)
    return NumberFormat(f"int{bits}", bits, 0, bits - 1, 0, top, "int", "bfloat16", None, "range")


def _float(name: str, exponent: int, mantissa: int, bias: int, top: float) -> NumberFormat:
    bits = 1 + exponent + mantissa
    return NumberFormat(
        name, bits, exponent, mantissa, bias, top, "float", "bfloat16", None, "absmax"
    )


def _mx(name: str, element: NumberFormat, rule: ScaleRule) -> NumberFormat:
    return NumberFormat(
        name,
        element.bits,
        element.exponent_bits,
        element.mantissa_bits,
        element.bias,
        element.max_value,
        "mx",
        "e8m0",
        32,
        rule,
    )


def _normal_float() -> tuple[float, ...]:
    """NormalFloat4 (Dettmers et al., "QLoRA", arXiv 2305.14314): evenly spaced quantiles of a normal distribution.

    Eight above zero and seven below, so that zero is an element, as a share of the largest.
    """
    quantile = NormalDist().inv_cdf
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = [quantile(outermost + (0.5 - outermost) * i / 8) for i in range(8)]
    below = [-quantile(outermost + (0.5 - outermost) * i / 7) for i in range(7)]
    return tuple(value / above[0] for value in (*below, 0.0, *reversed(above)))


_E2M1 = _float("fp4", 2, 1, 1, 6.0)
_E2M3 = _float("fp6", 2, 3, 1, 7.5)
_E3M2 = _float("fp6_e3m2", 3, 2, 3, 28.0)
_E4M3 = _float("fp8", 4, 3, 7, 448.0)
_E5M2 = _float("fp8_e5m2", 5, 2, 15, 57344.0)

_ROWS = (
    _int(2),
    _int(3),
    _int(4),
    _int(6),
    _int(8),
    _E2M1,
    _E2M3,
    _E3M2,
    _E4M3,
    _E5M2,
    _mx("mxfp4", _E2M1, "even"),
    _mx("mxfp6", _E2M3, "even"),
    _mx("mxfp6_e3m2", _E3M2, "even"),
    _mx("mxfp8", _E4M3, "rceil"),
    _mx("mxfp8_e5m2", _E5M2, "even"),
    NumberFormat("nvfp4", 4, 2, 1, 1, 6.0, "nv", "e4m3", 16, "absmax"),
    NumberFormat("nf4", 4, 0, 3, 0, 1.0, "nv", "e4m3", 64, "absmax", _normal_float()),
    NumberFormat("bf16", 16, 8, 7, 127, (2 - 2**-7) * 2.0**127, "none", None, None, "absmax"),
)
FORMATS: dict[str, NumberFormat] = {row.name: row for row in _ROWS}


def format_named(name: str) -> NumberFormat:
    """The row called `name`; raises FormatError with the nearest names and all of them."""
    row = FORMATS.get(name)
    if row is None:
        raise FormatError(
            f"unknown number format {name!r}; nearest: {nearest(name, FORMATS)}; "
            f"allowed: {', '.join(FORMATS)}"
        )
    return row


def code_values(fmt: NumberFormat) -> tuple[float, ...]:
    """The value of every code of an element, indexed by code.

    Integer codes count up from the smallest element. Float codes are the OCP bit patterns (sign, exponent, mantissa);
    patterns past the largest element are infinite or NaN as in E5M2 and E4M3, and are never produced here.
    """
    if fmt.is_integer:
        return tuple(fmt.min_value + code for code in range(2**fmt.bits))
    if fmt.codebook is not None:
        return fmt.codebook
    half = [_magnitude(code, fmt) for code in range(2 ** (fmt.bits - 1))]
    return (*half, *(-value for value in half))


def _magnitude(code: int, fmt: NumberFormat) -> float:
    exponent, mantissa = divmod(code, 2**fmt.mantissa_bits)
    fraction = mantissa / 2**fmt.mantissa_bits
    if exponent == 0:
        return math.ldexp(fraction, fmt.min_exponent)
    value = math.ldexp(1 + fraction, exponent - fmt.bias)
    if value <= fmt.max_value:
        return value
    return math.inf if mantissa == 0 else math.nan
