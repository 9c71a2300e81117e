"""A decoder block solved in the order of its data flow, each linear making up for what was lost before it.

First q/k/v (in latent attention what makes the latents, then what reads them), then o and what reads behind it, then down,
each from the inputs that the quantized ones before it make: two that make up for the same loss at once would overshoot, so
a shared expert comes before the routed ones, too. Only gate and up are looked at together with o, as if it were not
rounded, which saves a pass and loses nothing that could be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, Stack, sharing_stacks
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.hessian import HessianAccumulator, InverseFactor
from alphaquant.linalg.products import quick_products
from alphaquant.linalg.shortfall import agreement, move, trusted_share
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.models.shortfalls import Observed
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter
from alphaquant.resident import give_back_much

_DEPTHS: tuple[frozenset[Role], ...] = (
    frozenset({"q", "k", "v", "qkv", "q_a", "kv_a"}),
    frozenset({"q_b", "kv_b"}),
    frozenset({"o", "router", "gate", "up", "gate_up"}),
    frozenset({"down"}),
    frozenset({"other"}),  # nobody knows where these stand
)

Observe: TypeAlias = Callable[[Sequence[LinearSpec], Mapping[str, Tensor]], Observed]
"""Linears and the weights that stand in for others: what is gathered of them."""


def solve_in_order(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observe: Observe,
    device: torch.device,
    config: QuantizationConfig,
    at_once: AtOnce | None = None,
) -> Iterator[Solved]:
    """Quantize a block's linears by the plan, depth by depth, corrected for what they lack.

    `at_once` says how many experts of a shape are solved together at most.
    """
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
            moved = _Mover(seen, config, shares) if told else None
            found = solve_stacks(checkpoint, sharing, plan.schemes, device, config, moved)
            del sharing  # or its Hessians would be in memory while the next ones are made
            while found:
                values = found[0].quantized.dequantize()
                for spec, value in zip(found[0].stack.specs, values, strict=True):
                    # as the checkpoint will store it
                    weights[spec.name] = value.to(checkpoint.dtype(f"{spec.name}.weight"))
                del values, value
                yield found.pop(0)
        give_back_much()
    if shares:
        reporter().note(
            f"correction: {len(shares)} linears go {min(shares):.0%} to {max(shares):.0%} of the way to all that they lack"
        )


def _depths(specs: Sequence[LinearSpec]) -> Iterator[list[LinearSpec]]:
    for roles in _DEPTHS:
        members = [spec for spec in specs if spec.role in roles]
        if "down" not in roles:
            yield members
            continue
        yield [spec for spec in members if spec.expert is None]
        yield [spec for spec in members if spec.expert is not None]


@dataclass
class _Mover:
    """By what weights are moved that read the same inputs; the part of what they lack goes to `shares`."""

    seen: Observed
    config: QuantizationConfig
    shares: list[float]
    most: Tensor | None = None
    """How far the halves of the inputs agree `[n]`."""

    @timed("correction")
    def __call__(self, stack: Stack, weight: Tensor, factor: InverseFactor) -> Tensor:
        """Of a stack and its weights `[n, out, in]`. Where an expert's Hessian leans on its block's, nothing is lacking."""
        cols, keys = stack.specs[0].cols, [spec.input_key for spec in stack.specs]
        hessians = [self.seen.hessians[key] for key in keys]
        short = [self.seen.shortfalls[key] for key in keys]
        if self.most is None:
            inputs = torch.empty(2, len(keys), cols, cols, device=weight.device)
            for both, hessian, key in zip(inputs.unbind(1), hessians, keys, strict=True):
                _fill(both, hessian, self.seen.first[key])
            self.most, _ = agreement(inputs, factor)
            del inputs, both
        lacking = [s.halves * h.scale for s, h in zip(short, hessians, strict=True)]
        halves = torch.stack(lacking, dim=1)
        if short[0].of_inputs:
            with quick_products():
                halves = weight @ halves
        found, share = move(halves, self.most, factor)
        tokens = torch.tensor(stack.tokens, device=share.device)
        share = share * trusted_share(tokens, cols, self.config.correction_prior)
        if stack.specs[0].expert is not None:
            tokens = torch.tensor([h.effective_tokens for h in hessians], device=share.device)
            share = share * trusted_share(tokens, cols, self.config.expert_shrinkage)
        self.shares.extend(share.tolist())
        return found * share[:, None, None]


def _fill(halves: Tensor, hessian: HessianAccumulator, first: Tensor) -> None:
    """Let `halves` `[2, in, in]` be 2/n X̃X̃ᵀ of either half of the windows."""
    halves[0] = first
    torch.sub(hessian.total, first, out=halves[1])
    halves *= hessian.scale
