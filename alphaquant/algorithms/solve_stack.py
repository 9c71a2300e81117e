"""One stack of linears: round it by the configured method against its Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.stacks import Stack
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.linalg.drift import corrected, trusted_share
from alphaquant.linalg.hessian import inverse_factor
from alphaquant.models.checkpoint import Checkpoint, finite


@dataclass(frozen=True)
class Solved:
    """A stack and what became of it."""

    stack: Stack
    scheme: Scheme
    weight: Tensor
    """As the checkpoint has it # [n, out, in]"""
    damping: Tensor
    """Share of the Hessian's mean diagonal that was added # [n]"""
    quantized: QuantizedWeight
    compensated: Tensor
    """What each element would be without rounding, given all others # [n, out, in]"""


def solve_stack(
    checkpoint: Checkpoint,
    stack: Stack,
    scheme: Scheme,
    device: torch.device,
    config: QuantizationConfig,
    drift: Tensor | None = None,
) -> Solved:
    """Quantize a stack; with `drift` `[n, in, in]` of its inputs, towards the weight that makes up for it."""
    weight = torch.stack(
        [finite(checkpoint.weight(spec.name), spec.name).to(device).float() for spec in stack.specs]
    )
    factor = inverse_factor(stack.hessian, config.damping)
    if config.method == "rtn":
        quantized = rtn(weight, scheme, config.scale_search, stack.specs[0].name)
        return Solved(stack, scheme, weight, factor.damping, quantized, weight)
    target = weight
    if drift is not None:
        tokens = torch.tensor(stack.tokens, device=device)
        share = trusted_share(tokens, weight.shape[-1], config.correction_prior)
        target = corrected(weight, drift, factor, share)
    options = GptqOptions(
        config.block_size, config.act_order, config.static_groups, config.scale_search
    )
    found = gptq(target, factor, scheme, options)
    quantized, compensated = found.weight, found.compensated
    if config.refit or config.sweeps:
        quantized, compensated = refine(
            target, factor.damped, quantized, sweeps=config.sweeps, refit=config.refit
        )
    return Solved(stack, scheme, weight, factor.damping, quantized, compensated)
