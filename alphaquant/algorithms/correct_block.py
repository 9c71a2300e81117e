"""A decoder block solved in the order of its data flow, each linear making up for what was lost before it.

Linears that read inputs of the same depth are solved together: q/k/v (in latent attention what makes the
latents, then what reads them), then o, then gate/up and routers, then down, each from the inputs that the
quantized ones before it make. Asking all of them to make up for the same loss at once would overshoot, so
a shared expert comes before the routed ones, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.algorithms.solve_stack import Lacking, Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, Stack, sharing_stacks
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.drift import trusted_share
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.models.pairs import Pairs
from alphaquant.plan import QuantPlan

_DEPTHS: tuple[frozenset[Role], ...] = (
    frozenset({"q", "k", "v", "qkv", "q_a", "kv_a"}),
    frozenset({"q_b", "kv_b"}),
    frozenset({"o"}),
    frozenset({"router", "gate", "up", "gate_up"}),
    frozenset({"down"}),
    frozenset({"other"}),  # nobody knows where these stand
)

ObservePairs: TypeAlias = Callable[[Sequence[LinearSpec], Mapping[str, Tensor]], Pairs]
"""Linears and the weights that stand in for others: what is gathered of them."""


@timed("correction")
def solve_in_order(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observe: ObservePairs,
    device: torch.device,
    config: QuantizationConfig,
    at_once: AtOnce | None = None,
) -> list[Solved]:
    """Quantize a block's linears by the plan, depth by depth, corrected for what they lack.

    `at_once` says how many experts of a shape are solved together at most.
    """
    done: list[Solved] = []
    weights: dict[str, Tensor] = {}
    for members in _depths(specs):
        if all(plan.schemes[spec.name].format == "bf16" for spec in members):
            continue
        seen = observe(members, weights)
        for sharing, lacking in _lacking(members, seen, plan, config, at_once):
            for solved in solve_stacks(checkpoint, sharing, plan.schemes, device, config, lacking):
                done.append(solved)
                values = solved.quantized.dequantize()
                weights |= {spec.name: values[i] for i, spec in enumerate(solved.stack.specs)}
    return done


def _depths(specs: Sequence[LinearSpec]) -> Iterator[list[LinearSpec]]:
    for roles in _DEPTHS:
        members = [spec for spec in specs if spec.role in roles]
        if "down" not in roles:
            yield members
            continue
        yield [spec for spec in members if spec.expert is None]
        yield [spec for spec in members if spec.expert is not None]


def _lacking(
    members: Sequence[LinearSpec],
    seen: Pairs,
    plan: QuantPlan,
    config: QuantizationConfig,
    at_once: AtOnce | None,
) -> Iterator[tuple[list[Stack], Lacking]]:
    """Stacks that share their Hessians, and what they lack."""
    together = partial(
        sharing_stacks,
        members,
        sort_key=plan.schemes,
        at_once=at_once,
        expert_shrinkage=config.expert_shrinkage,
    )
    if not seen.drifts:
        for sharing in together(seen.hessians):
            yield sharing, partial(_shortfall, seen, config.expert_shrinkage)
        return
    for sharing, moved in zip(together(seen.hessians), together(seen.drifts), strict=True):
        yield sharing, partial(_drifted, moved[0].hessian)


def _drifted(drift: Tensor, _stack: Stack, weight: Tensor) -> Tensor:
    return weight @ drift


def _shortfall(seen: Pairs, expert_shrinkage: float, stack: Stack, _weight: Tensor) -> Tensor:
    """Of a stack `[n, out, in]`. Where an expert's Hessian leans on its block's, nothing is lacking."""
    hessians = [seen.hessians[spec.input_key] for spec in stack.specs]
    lacking = torch.stack(
        [
            seen.shortfalls[spec.input_key].total * hessian.scale
            for spec, hessian in zip(stack.specs, hessians, strict=True)
        ]
    )
    if stack.specs[0].expert is None:
        return lacking
    tokens = torch.tensor([h.effective_tokens for h in hessians], device=lacking.device)
    share = trusted_share(tokens, stack.specs[0].cols, expert_shrinkage)
    return lacking * share[:, None, None]
