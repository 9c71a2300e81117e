"""Scales: what a group of weights is divided by before it is rounded, from one rule per format.

range    integers: the span of the grid's cells, so that both ends of a group lose at most half a step
absmax   floats: the largest magnitude lands on the largest element
floor    E8M0 of OCP MX v1.0: 2^(floor(log2 amax) - emax); the top of a group may saturate
even     E8M0: the same after amax was rounded to the element's mantissa
rceil    E8M0: the smallest power of two under which nothing saturates

bf16 and E4M3 scales are rounded before any element is chosen. An all-zero group has the scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from alphaquant.formats.grid import code_table, to_codes
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, E8M0Rule, NumberFormat, ScaleRule, code_values
from alphaquant.pinned import to_host

E4M3 = FORMATS["fp8"]
TOP_E4M3_CODE = 0x7E
_FRACTION_BITS = 23
_FRACTION_MASK = (1 << _FRACTION_BITS) - 1
_FP32_BIAS = 127


@dataclass(frozen=True, slots=True)
class Scales:
    """Stored scales of a weight `[..., out, in]`: fp32 tensors whose values the scale's own type holds exactly."""

    scale: Tensor
    """# [..., out, groups]"""
    zero: Tensor | None = None
    """Zero points: integers of the element's grid # [..., out, groups]"""
    global_scale: Tensor | None = None
    """The power of two per matrix of nvfp4 and nf4 # [...]"""
    group_size: int | None = None
    """Columns per scale; None means that one scale serves the row."""

    def __getitem__(self, index: int) -> Scales:
        """The scales of one entry of the first batch dimension."""
        return Scales(
            self.scale[index],
            None if self.zero is None else self.zero[index],
            None if self.global_scale is None else self.global_scale[index],
            self.group_size,
        )

    def to(self, device: torch.device) -> Scales:
        """The same on a device."""
        scale, zero, shared = (
            None if tensor is None else tensor.to(device)
            for tensor in (self.scale, self.zero, self.global_scale)
        )
        assert scale is not None
        return Scales(scale, zero, shared, self.group_size)

    def to_host(self) -> Scales:
        """The same on the CPU."""
        zero, shared = (None if x is None else to_host(x) for x in (self.zero, self.global_scale))
        return Scales(to_host(self.scale), zero, shared, self.group_size)

    def rows(self, chosen: slice) -> Scales:
        """The scales of some rows of every matrix."""
        zero = None if self.zero is None else self.zero[..., chosen, :]
        return Scales(self.scale[..., chosen, :], zero, self.global_scale, self.group_size)

    @classmethod
    def of_rows(cls, parts: Sequence[Scales]) -> Scales:
        """Scales of matrices from those of their rows in order; a scale of the whole matrix is the same in all."""
        zeros = [part.zero for part in parts if part.zero is not None]
        return cls(
            torch.cat([part.scale for part in parts], -2),
            torch.cat(zeros, -2) if zeros else None,
            parts[0].global_scale,
            parts[0].group_size,
        )

    @property
    def effective(self) -> Tensor:
        """Scales with the matrix's own folded in; the product is exact # [..., out, groups]"""
        if self.global_scale is None:
            return self.scale
        return self.scale * self.global_scale[..., None, None]


def expand(scales: Scales, cols: int) -> tuple[Tensor, Tensor | None]:
    """Effective fp32 scale and zero point of every column, both `[..., out, in]`; ones for bf16."""
    if scales.scale.shape[-1] == 0:
        return scales.scale.new_ones(*scales.scale.shape[:-1], cols), None
    zero = None if scales.zero is None else _per_column(scales.zero, scales.group_size, cols)
    return _per_column(scales.effective, scales.group_size, cols), zero


def _per_column(values: Tensor, group_size: int | None, cols: int) -> Tensor:
    return values.repeat_interleave(group_size or cols, dim=-1)[..., :cols]


def split_groups(values: Tensor, width: int) -> Tensor:
    """`[..., in]` -> `[..., groups, width]`; a shorter last group is filled with zeros, which cost nothing."""
    if short := -values.shape[-1] % width:  # padding by nothing would copy
        values = functional.pad(values, (0, short))
    return values.reshape(*values.shape[:-1], -1, width)


def rule_scales(
    groups: Tensor,
    scheme: Scheme,
    rule: E8M0Rule | None = None,
    global_scale: Tensor | None = None,
) -> Scales:
    """Scales of grouped weights `[..., out, groups, width]` by the format's rule.

    `rule` replaces an mx format's own, `global_scale` `[...]` an nv format's scale of the matrix.
    """
    fmt, width = scheme.number_format, groups.shape[-1]
    if not scheme.symmetric:
        low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
        return Scales(*asymmetric_scale(low, high, fmt), group_size=width)
    top = groups.abs().amax(-1)
    if fmt.kind == "mx":
        return Scales(e8m0_scale(top, fmt, rule or fmt.scale_rule), group_size=width)
    if fmt.kind == "nv":
        shared = _nv_global(top.amax((-2, -1)), fmt) if global_scale is None else global_scale
        scale = e4m3_scale(top / (fmt.max_value * shared[..., None, None]))
        return Scales(torch.where(top > 0, scale, 1.0), None, shared, width)
    span = fmt.max_value + (0.5 if fmt.is_integer else 0.0)
    return Scales(torch.where(top > 0, bf16_scale(top / span, fmt), 1.0), group_size=width)


def bf16_scale(raw: Tensor, fmt: NumberFormat) -> Tensor:
    """The nearest positive bf16 value, kept where no element overflows fp32."""
    return raw.clamp(*scale_bounds(fmt)).to(torch.bfloat16).float()


@cache
def scale_bounds(fmt: NumberFormat) -> tuple[float, float]:
    """The least and the largest scale: bf16 and E8M0 ones are held to where no element overflows fp32."""
    if fmt.scale_type == "e4m3":
        least, most = e4m3_value(torch.tensor([0, TOP_E4M3_CODE], dtype=torch.int32)).tolist()
        return least, most
    if fmt.scale_type == "e8m0":
        return 2.0**-127, 2.0 ** (127 - fmt.max_exponent)
    return 2.0**-126, 2.0 ** (126 - fmt.max_exponent)


def nearest_scale(raw: Tensor, fmt: NumberFormat) -> Tensor:
    """The scale of the format's type that lies nearest to each value; bf16 ones keep the sign."""
    if fmt.scale_type == "bfloat16":
        return torch.copysign(bf16_scale(raw.abs(), fmt), raw)
    raw = raw.clamp(min=2.0**-126)
    if fmt.scale_type == "e4m3":
        return e4m3_scale(raw)
    # half a fraction on top: between two powers of two the middle is at 1.5
    exponent = (
        (raw.view(torch.int32) + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
    ) - _FP32_BIAS
    return e8m0_clamp(power_of_two(exponent.clamp(max=_FP32_BIAS)), fmt)


def asymmetric_scale(low: Tensor, high: Tensor, fmt: NumberFormat) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point whose grid spans `low <= 0 <= high`."""
    steps = 2**fmt.bits - 1
    scale = torch.where(high > low, bf16_scale(high / steps - low / steps, fmt), 1.0)
    zero = (fmt.min_value - (low / scale).round_()).clamp_(fmt.min_value, fmt.max_value)
    return scale, zero


def e8m0_scale(top: Tensor, fmt: NumberFormat, rule: ScaleRule) -> Tensor:
    """Power of two for a group whose largest magnitude is `top`, by the floor, even or rceil rule."""
    bits = top.view(torch.int32)
    if rule == "even":
        bits = bits + (1 << (_FRACTION_BITS - fmt.mantissa_bits - 1))
    exponent = (bits >> _FRACTION_BITS) - _FP32_BIAS - fmt.max_exponent
    if rule == "rceil":
        exponent = exponent + _fraction_above(top, fmt.max_value)
    scale = e8m0_clamp(power_of_two(exponent.clamp_(min=-_FP32_BIAS)), fmt)
    return torch.where(top > 0, scale, 1.0)


def e8m0_clamp(scale: Tensor, fmt: NumberFormat) -> Tensor:
    """Powers of two held to E8M0's range, and below where the largest element would overflow fp32."""
    return scale.clamp(*scale_bounds(fmt))


def e4m3_scale(raw: Tensor) -> Tensor:
    """The nearest positive E4M3 value."""
    return e4m3_value(to_codes(raw, E4M3).int())


def e4m3_value(codes: Tensor) -> Tensor:
    """The value of int32 E4M3 codes, held to the positive finite ones."""
    table = code_table(E4M3, codes.device)
    return table.index_select(0, codes.clamp(1, TOP_E4M3_CODE).flatten()).view(codes.shape)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in fp32 from int32 exponents of -127 to 127, exact by construction."""
    # 2^-127 is subnormal in fp32: its one fraction bit stands where the exponent field ends.
    return ((exponent + _FP32_BIAS) << _FRACTION_BITS).clamp_(min=1 << 22).view(torch.float32)


def _nv_global(top: Tensor, fmt: NumberFormat) -> Tensor:
    # A search may map the top of any group onto the second largest element (4 of nvfp4) as well as the largest.
    second = sorted(code_values(fmt))[-2]
    limit = second * E4M3.max_value
    exponent = (top.view(torch.int32) >> _FRACTION_BITS) - _FP32_BIAS
    exponent = exponent - (math.frexp(limit)[1] - 1) + _fraction_above(top, limit)
    # Above 2^116 the largest element under the largest scale, 6 * 448, would overflow fp32.
    return torch.where(top > 0, power_of_two(exponent.clamp_(-126, 116)), 1.0)


def _fraction_above(top: Tensor, limit: float) -> Tensor:
    """1 where the fraction of `top` exceeds that of `limit`: dividing them then needs the next power of two."""
    limit_fraction = int((math.frexp(limit)[0] * 2 - 1) * (1 << _FRACTION_BITS))
    return ((top.view(torch.int32) & _FRACTION_MASK) > limit_fraction).int()
