"""One stack of linears: round it by the configured method against its Hessians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alphaquant.algorithms.adaround import adaround
from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.nf4 import nf4
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.stacks import Stack
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, quantize_weight
from alphaquant.linalg.drift import corrected, trusted_share
from alphaquant.linalg.hessian import InverseFactor, inverse_factor
from alphaquant.models.checkpoint import finite


class Weights(Protocol):
    """A checkpoint, or one seen through scales."""

    def weight(self, linear: str) -> Tensor:
        """A linear's weight `[out, in]` by name."""


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
    compensated: Tensor
    """What each element would be without rounding, given all others # [n, out, in]"""


def solve_stack(
    weights: Weights,
    stack: Stack,
    scheme: Scheme,
    device: torch.device,
    config: QuantizationConfig,
    drift: Tensor | None = None,
) -> Solved:
    """Quantize a stack; with `drift` `[n, in, in]` of its inputs, GPTQ's towards the weight that makes up for it."""
    with timed("load weights"):
        weight = torch.stack(
            [
                finite(weights.weight(spec.name), spec.name).to(device).float()
                for spec in stack.specs
            ]
        )
    factor = inverse_factor(stack.hessian, config.damping)
    return solve_weight(weight, factor, stack, scheme, config, drift)


def solve_weight(
    weight: Tensor,  # [n, out, in]
    factor: InverseFactor,
    stack: Stack,
    scheme: Scheme,
    config: QuantizationConfig,
    drift: Tensor | None = None,
) -> Solved:
    """Quantize the weight of a stack, or rows of it, against the `factor` of its Hessians."""
    compensated = weight
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
            quantized, compensated = _compensated(weight, stack, scheme, factor, config, drift)
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
    weight: Tensor,
    stack: Stack,
    scheme: Scheme,
    factor: InverseFactor,
    config: QuantizationConfig,
    drift: Tensor | None,
) -> tuple[QuantizedWeight, Tensor]:
    """GPTQ and its refinement: the codes, and what was rounded to them."""
    target = weight
    if drift is not None:
        tokens = torch.tensor(stack.tokens, device=weight.device)
        share = trusted_share(tokens, weight.shape[-1], config.correction_prior)
        target = corrected(weight, drift, factor, share)
    options = GptqOptions(
        config.block_size, config.act_order, config.static_groups, config.scale_search
    )
    found = gptq(target, factor, scheme, options)
    if not (config.refit or config.sweeps):
        return found.weight, found.compensated
    return refine(target, factor.damped, found.weight, sweeps=config.sweeps, refit=config.refit)
