"""A decoder block solved in the order of its data flow, each linear making up for what its inputs have lost.

Linears that read inputs of the same depth are solved together: q/k/v (in latent attention what makes the
latents, then what reads them), then o, then gate/up and routers, then down, each from the inputs that the
quantized ones before it make. Asking all of them to make up for the same loss at once would overshoot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, sharing_stacks
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.drift import DriftAccumulator
from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.plan import QuantPlan

_DEPTHS: tuple[frozenset[Role], ...] = (
    frozenset({"q", "k", "v", "qkv", "q_a", "kv_a"}),
    frozenset({"q_b", "kv_b"}),
    frozenset({"o"}),
    frozenset({"router", "gate", "up", "gate_up"}),
    frozenset({"down"}),
    frozenset({"other"}),  # nobody knows where these stand
)

ObservePairs = Callable[
    [Sequence[LinearSpec], Mapping[str, Tensor]],
    tuple[Mapping[str, HessianAccumulator], Mapping[str, DriftAccumulator]],
]
"""Linears and the weights that stand in for others: their inputs' Hessians and drifts, by input key."""


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
    """Quantize a block's linears by the plan, depth by depth, corrected for the drift of their inputs.

    `at_once` says how many experts of a shape are solved together at most.
    """
    done: list[Solved] = []
    weights: dict[str, Tensor] = {}
    for roles in _DEPTHS:
        members = [spec for spec in specs if spec.role in roles]
        if all(plan.schemes[spec.name].format == "bf16" for spec in members):
            continue
        hessians, drifts = observe(members, weights)
        pairs = zip(
            sharing_stacks(members, hessians, config.expert_shrinkage, plan.schemes, at_once),
            sharing_stacks(members, drifts, config.expert_shrinkage, plan.schemes, at_once),
            strict=True,
        )
        for sharing, moved in pairs:
            drift = moved[0].hessian
            for solved in solve_stacks(checkpoint, sharing, plan.schemes, device, config, drift):
                done.append(solved)
                values = solved.quantized.dequantize()
                weights |= {spec.name: values[i] for i, spec in enumerate(solved.stack.specs)}
    return done
