"""A decoder block solved in the order of its data flow, each linear making up for what was lost before it.

First q/k/v, then o and whatever reads behind it, then down, each from the inputs that the quantized ones before it make:
two that make up for the same loss at once would overshoot, so a shared expert comes before the routed ones, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, Stack, sharing_stacks
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.hessian import InverseFactor
from alphaquant.linalg.shortfall import move, trusted_share
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.models.shortfalls import Observed
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter

_DEPTHS: tuple[frozenset[Role], ...] = (
    frozenset({"q", "k", "v", "qkv", "q_a", "kv_a", "q_b", "kv_b"}),
    frozenset({"o", "router", "gate", "up", "gate_up"}),
    frozenset({"down"}),
    frozenset({"other"}),  # nobody knows where these stand
)

Observe: TypeAlias = Callable[[Sequence[LinearSpec], Mapping[str, Tensor]], Observed]
"""Linears and the weights that stand in for others: what is gathered of them."""


@timed("correction")
def solve_in_order(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observe: Observe,
    device: torch.device,
    config: QuantizationConfig,
    at_once: AtOnce | None = None,
) -> list[Solved]:
    """Quantize a block's linears by the plan, depth by depth, corrected for what they lack.

    `at_once` says how many experts of a shape are solved together at most.
    """
    done: list[Solved] = []
    weights: dict[str, Tensor] = {}
    shares: list[float] = []
    for members in _depths(specs):
        if all(plan.schemes[spec.name].format == "bf16" for spec in members):
            continue
        seen = observe(members, weights)
        for sharing in sharing_stacks(
            members, seen.hessians, config.expert_shrinkage, plan.schemes, at_once
        ):
            told = sharing[0].specs[0].input_key in seen.shortfalls
            moved = partial(_moved, seen, config, shares) if told else None
            for solved in solve_stacks(checkpoint, sharing, plan.schemes, device, config, moved):
                done.append(solved)
                values = solved.quantized.dequantize()
                weights |= {spec.name: values[i] for i, spec in enumerate(solved.stack.specs)}
    if shares:
        reporter().note(
            f"correction: {len(shares)} linears make up for {min(shares):.0%} to {max(shares):.0%} of what they lack"
        )
    return done


def _depths(specs: Sequence[LinearSpec]) -> Iterator[list[LinearSpec]]:
    for roles in _DEPTHS:
        members = [spec for spec in specs if spec.role in roles]
        if "down" not in roles:
            yield members
            continue
        yield [spec for spec in members if spec.expert is None]
        yield [spec for spec in members if spec.expert is not None]


def _moved(
    seen: Observed,
    config: QuantizationConfig,
    shares: list[float],
    stack: Stack,
    weight: Tensor,
    factor: InverseFactor,
) -> Tensor:
    """By what the weights of a stack are moved `[n, out, in]`; the part that it is of all that they lack goes to `shares`.

    Where an expert's Hessian leans on its block's, nothing is lacking.
    """
    cols, keys = stack.specs[0].cols, [spec.input_key for spec in stack.specs]
    short, hessians = [seen.shortfalls[key] for key in keys], [seen.hessians[key] for key in keys]
    halves = torch.stack([s.halves * h.scale for s, h in zip(short, hessians, strict=True)], dim=1)
    if short[0].of_inputs:
        halves = weight @ halves
    found, share = move(halves, torch.stack([s.masses for s in short], dim=1), factor)
    tokens = torch.tensor(stack.tokens, device=share.device)
    share = share * trusted_share(tokens, cols, config.correction_prior)
    if stack.specs[0].expert is not None:
        tokens = torch.tensor([h.effective_tokens for h in hessians], device=share.device)
        share = share * trusted_share(tokens, cols, config.expert_shrinkage)
    shares.extend(share.tolist())
    return found * share[:, None, None]
