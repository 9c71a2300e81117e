"""Stacks of linears that read the same inputs: round them by the configured method against their Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.algorithms.adaround import adaround
from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.nf4 import nf4
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.stacks import Stack, Weights, stacked_weight
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, quantize_weight
from alphaquant.linalg.hessian import InverseFactor, inverse_factor

Moved: TypeAlias = Callable[[Stack, Tensor, InverseFactor], Tensor]
"""A stack, its weights `[n, out, in]` and the factor of its Hessians to what they are moved by before they are rounded, of the same shape."""

_TOGETHER = 1 << 28
"""Weights that are walked together at most: 1 GiB in fp32, of which a handful of copies exist."""


@dataclass(frozen=True)
class Solved:
    """A stack and what became of it."""

    stack: Stack
    scheme: Scheme
    weight: Tensor
    """Before rounding # [n, out, in]"""
    damping: Tensor
    """Share of the Hessian's mean diagonal that was added # [n]"""
    quantized: QuantizedWeight
    compensated: Tensor | None
    """What each element would be without rounding, given all others; None where refinement leaves it out # [n, out, in]"""


def solve_stacks(
    weights: Weights,
    sharing: Sequence[Stack],
    schemes: Mapping[str, Scheme],
    device: torch.device,
    config: QuantizationConfig,
    moved: Moved | None = None,
) -> list[Solved]:
    """Quantize stacks that share their Hessians, but for those whose scheme is bf16; one factor serves all.

    GPTQ's go towards the `moved` weights.
    """
    by_scheme: dict[Scheme, list[Stack]] = {}
    for stack in sharing:
        by_scheme.setdefault(schemes[stack.specs[0].name], []).append(stack)
    by_scheme.pop(Scheme("bf16"), None)
    if not by_scheme:
        return []
    factor = inverse_factor(sharing[0].hessian, config.damping, by_energy=config.factors_by_energy)
    return [
        solved
        for scheme, alike in by_scheme.items()
        for together in _walked_together(alike, scheme, config)
        for solved in _solve_rows(weights, together, factor, scheme, device, config, moved)
    ]


def _walked_together(
    stacks: Sequence[Stack], scheme: Scheme, config: QuantizationConfig
) -> Iterator[list[Stack]]:
    """Stacks whose rows are solved as those of one, which is what each would be: GPTQ knows no rows but one.

    Not where a scale belongs to the whole matrix, nor where there would be so many that memory counts.
    """
    alone = config.method != "gptq" or scheme.number_format.kind == "nv"
    together: list[Stack] = []
    for stack in stacks:
        weights = sum(spec.size for one in (*together, stack) for spec in one.specs)
        if together and (alone or weights > _TOGETHER):
            yield together
            together = []
        together.append(stack)
    yield together


def _solve_rows(
    weights: Weights,
    stacks: Sequence[Stack],
    factor: InverseFactor,
    scheme: Scheme,
    device: torch.device,
    config: QuantizationConfig,
    moved: Moved | None,
) -> Iterator[Solved]:
    """Solve the rows of several stacks as those of one."""
    parts = [stacked_weight(weights, stack, device) for stack in stacks]
    weight, target = torch.cat(parts, dim=-2), None
    if moved is not None:
        moves = [moved(stack, part, factor) for stack, part in zip(stacks, parts, strict=True)]
        target = weight + torch.cat(moves, dim=-2)
        del moves
    del parts
    whole = solve_weight(weight, factor, stacks[0], scheme, config, target)
    start = 0
    for stack in stacks:
        stop = start + stack.specs[0].rows
        yield Solved(
            stack,
            scheme,
            whole.weight[:, start:stop],
            whole.damping,
            whole.quantized.rows(start, stop),
            None if whole.compensated is None else whole.compensated[:, start:stop],
        )
        start = stop


def solve_weight(
    weight: Tensor,  # [n, out, in]
    factor: InverseFactor,
    stack: Stack,
    scheme: Scheme,
    config: QuantizationConfig,
    target: Tensor | None = None,  # [n, out, in]
) -> Solved:
    """Quantize the weight of a stack, or rows of it, against the `factor` of its Hessians; GPTQ towards a `target` instead."""
    compensated: Tensor | None = weight
    match config.method:
        case "rtn":
            quantized = rtn(weight, scheme, config.scale_search, stack.specs[0].name)
        case "nf4":
            quantized = nf4(weight, scheme, stack.specs[0].name)
        case "awq":
            quantized = _clipped(weight, stack.hessian, scheme, config)
        case "adaround":
            quantized = adaround(
                weight,
                factor.damped,
                factor.energy,
                scheme,
                config.scale_search,
                steps=config.learned_rounding_steps,
            )
        case "gptq":
            quantized, compensated = _compensated(
                weight if target is None else target, scheme, factor, config
            )
    return Solved(stack, scheme, weight, factor.damping, quantized, compensated)


def _clipped(
    weight: Tensor, hessian: Tensor, scheme: Scheme, config: QuantizationConfig
) -> QuantizedWeight:
    """To nearest, under the scales of least output error by group where the config has it so."""
    return quantize_weight(
        weight,
        scheme,
        search="none" if config.scale_search == "none" else "mse",
        hessian=hessian if config.scale_search == "hessian" else None,
    )


def _compensated(
    target: Tensor, scheme: Scheme, factor: InverseFactor, config: QuantizationConfig
) -> tuple[QuantizedWeight, Tensor | None]:
    """GPTQ and its refinement: the codes, and for tuning what was rounded to them."""
    options = GptqOptions(
        config.block_size, config.act_order, config.static_groups, config.scale_search
    )
    refined = config.refit or config.sweeps > 0
    wanted = config.tune != "none"
    found = gptq(target, factor, scheme, options, compensated=wanted and not refined)
    if not refined:
        return found.weight, found.compensated
    return refine(
        target,
        factor.damped,
        found,
        sweeps=config.sweeps,
        refit=config.refit,
        wanted=wanted,
    )
