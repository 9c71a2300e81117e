"""Scale search: try scales around the rule's and keep, group by group, the one with the least squared error.

Candidates are tried one after another over all groups at once, so memory stays a few copies of the weight. The rule's
own scale is where the search starts, hence the result is never worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from alphaquant.clock import timed
from alphaquant.errors import ModelError
from alphaquant.formats.choice import best_of, refitted
from alphaquant.formats.grid import all_finite, fake_quantize, to_codes
from alphaquant.formats.scales import (
    E4M3,
    Scales,
    asymmetric_scale,
    bf16_scale,
    e4m3_value,
    e8m0_clamp,
    rule_scales,
    split_groups,
)
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import E8M0Rule, NumberFormat

Search = Literal["none", "mse"]

_STEPS = 20
_PIECE = 1 << 19
"""Weights of a piece."""
_REFITS = 2
# Where the best scale lies relative to the rule's: narrow integers clip most, wide ones hardly; a float grid repeats
# itself with every octave.
_INT_RANGE = {2: (0.2, 1.2), 3: (0.2, 1.2), 4: (0.2, 1.2), 6: (0.6, 1.2), 8: (0.8, 1.2)}
_FLOAT_RANGE = (0.75, 1.6)
# Every E4M3 scale from 0.6 to 1.6 times the rule's, which puts a group's top on nvfp4's element 4 as well as on 6.
_NV_OFFSETS = range(-6, 7)


@timed("scale search")
def find_scales(
    weight: Tensor,
    scheme: Scheme,
    *,
    search: Search = "none",
    importance: Tensor | None = None,
    hessian: Tensor | None = None,
    rule: E8M0Rule | None = None,
    global_scale: Tensor | None = None,
    name: str = "",
) -> Scales:
    """Scales of a weight `[..., out, in]`; leading dimensions are separate matrices.

    `search="mse"` minimizes the squared error of each group, weighted by `importance` `[..., in]` (the diagonal of a
    Hessian) when given; with `hessian` `[..., in, in]` the error that each group alone makes in the output. `rule` replaces an mx format's own E8M0 rule; `global_scale` `[...]` fixes an nv format's scale of the
    matrix, for callers that see only some of its columns. A NaN or infinite weight raises ModelError.
    """
    weight = weight.detach().float()
    require_finite(weight, name)
    if scheme.number_format.scale_type is None:
        return Scales(weight.new_empty(*weight.shape[:-1], 0))
    width = scheme.group_width(weight.shape[-1])
    groups = split_groups(weight, width)
    scales = rule_scales(groups, scheme, rule, global_scale)
    if search == "none" or not weight.numel():
        return scales
    weights = None
    if importance is not None:
        weights = split_groups(importance.detach().float().unsqueeze(-2), width)
    blocks = None if hessian is None else _diagonal_blocks(hessian.detach().float(), width)
    cost = _Cost(weights, blocks)
    return Scales.of_rows(
        [
            _best_scales(groups[..., part, :, :], cost, scales.rows(part), scheme)
            for part in pieces(weight)
        ]
    )


def pieces(weight: Tensor) -> Iterator[slice]:
    """The rows of a weight `[..., out, in]`, as many at a time as a CPU's cache holds with what is made of them; all on a GPU."""
    rows = weight.shape[-2]
    on_cpu = weight.device.type == "cpu"
    at_once = max(1, _PIECE * rows // max(1, weight.numel()) if on_cpu else rows)
    return (slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once))


def require_finite(weight: Tensor, name: str = "") -> None:
    """Raise a ModelError that names the weight when it holds NaN or infinity."""
    if not all_finite(weight):
        bad = int((~weight.isfinite()).sum())
        raise ModelError(
            f"weight {name or '(unnamed)'} holds {bad} NaN or infinite values of {weight.numel()}; "
            "only finite weights can be quantized: check the checkpoint"
        )


@dataclass(frozen=True, slots=True)
class _Cost:
    """What errors of a group count."""

    weights: Tensor | None
    """By element # [..., 1, groups, width]"""
    blocks: Tensor | None
    """By pair of elements # [..., groups, width, width]"""

    def weighted(self, values: Tensor) -> Tensor:
        """The values `[..., out, groups, width]`, or what their products with others are summed of."""
        if self.blocks is not None:
            return (values.transpose(-3, -2) @ self.blocks).transpose(-3, -2)
        return values if self.weights is None else values * self.weights

    def of(self, difference: Tensor) -> Tensor:
        """Cost of an error, which is overwritten, by group `[..., out, groups]`."""
        if self.blocks is not None:
            return self.weighted(difference).mul_(difference).sum(-1)
        squares = difference.square_()
        return (squares if self.weights is None else squares.mul_(self.weights)).sum(-1)


def _diagonal_blocks(hessian: Tensor, width: int) -> Tensor:
    """`[..., in, in]` -> `[..., groups, width, width]`, filled with zeros as `split_groups` does."""
    short = -hessian.shape[-1] % width
    whole = functional.pad(hessian, (0, short, 0, short))
    groups = whole.shape[-1] // width
    square = whole.reshape(*whole.shape[:-2], groups, width, groups, width)
    return square.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _best_scales(groups: Tensor, cost: _Cost, start: Scales, scheme: Scheme) -> Scales:
    fmt = scheme.number_format

    def error(scales: Scales) -> Tensor:
        return cost.of(_values(groups, scales, fmt).sub_(groups))

    best = None
    if cost.blocks is None:
        best = best_of(
            lambda: [start, *_candidates(groups, start, scheme)],
            groups,
            cost.weights,
            fmt,
            asymmetric=start.zero is not None,
        )
    if best is None:
        best, least = start, error(start)
        for candidate in _candidates(groups, start, scheme):
            best, least = _better(best, least, candidate, error(candidate))
    elif fmt.scale_type == "bfloat16":
        if moved := refitted(best, groups, cost.weights, fmt, _REFITS):
            return moved
        least = error(best)
    if fmt.scale_type == "bfloat16":
        for _ in range(_REFITS):
            candidate = _refit(groups, cost, best, fmt)
            best, least = _better(best, least, candidate, error(candidate))
    return best


def _values(groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
    zero = None if scales.zero is None else scales.zero.unsqueeze(-1)
    return fake_quantize(groups, scales.effective.unsqueeze(-1), zero, fmt)


def _better(best: Scales, least: Tensor, other: Scales, error: Tensor) -> tuple[Scales, Tensor]:
    wins = error < least
    zero = best.zero
    if zero is not None and other.zero is not None:
        zero = torch.where(wins, other.zero, zero)
    scale = torch.where(wins, other.scale, best.scale)
    return replace(best, scale=scale, zero=zero), torch.where(wins, error, least)


def _candidates(groups: Tensor, start: Scales, scheme: Scheme) -> Iterator[Scales]:
    fmt = scheme.number_format
    if fmt.kind == "mx":
        for factor in (0.5, 2.0):
            yield replace(start, scale=e8m0_clamp(start.scale * factor, fmt))
    elif fmt.kind == "nv":
        codes = to_codes(start.scale, E4M3).int()
        for offset in _NV_OFFSETS:
            yield replace(start, scale=e4m3_value(codes + offset))
    elif not scheme.symmetric:
        low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
        for factor in _factors(fmt):
            scale, zero = asymmetric_scale(low * factor, high * factor, fmt)
            yield replace(start, scale=scale, zero=zero)
    else:
        for factor in _factors(fmt):
            scale = bf16_scale(start.scale * factor, fmt)
            yield replace(start, scale=scale)
            if fmt.is_integer:
                # A negative scale turns the grid round: its longer side then serves positive weights.
                yield replace(start, scale=-scale)


def tries(scheme: Scheme) -> int:
    """How many scales a search looks at in every group."""
    fmt = scheme.number_format
    if fmt.scale_type is None:
        return 0
    if fmt.kind in ("mx", "nv"):
        return 1 + (2 if fmt.kind == "mx" else len(_NV_OFFSETS))
    both = scheme.symmetric and fmt.is_integer
    refits = _REFITS if fmt.scale_type == "bfloat16" else 0
    return 1 + _STEPS * (2 if both else 1) + refits


def _factors(fmt: NumberFormat) -> list[float]:
    low, high = _INT_RANGE[fmt.bits] if fmt.is_integer else _FLOAT_RANGE
    return [low * (high / low) ** (step / (_STEPS - 1)) for step in range(_STEPS)]


def _refit(groups: Tensor, cost: _Cost, best: Scales, fmt: NumberFormat) -> Scales:
    """The scale of least squared error for the codes that `best` gives."""
    elements = _values(groups, best, fmt).div_(best.scale.unsqueeze(-1))
    weighted = cost.weighted(elements)
    ratio = (groups * weighted).sum(-1) / (elements * weighted).sum(-1)
    scale = torch.copysign(bf16_scale(ratio.abs(), fmt), ratio)
    return replace(best, scale=torch.where(ratio.isfinite(), scale, best.scale))
