"""A decoder block solved in the order of its data flow, each linear behind the quantized ones before it.

First q/k/v (in latent attention what makes the latents, then what reads them), then o and what reads behind it, then down.
So what attention hands to o, and an MLP to down, is as it will be when the block is passed, and can be kept. Corrected linears need
the order for themselves: two that make up for the same loss at once would overshoot, so a shared expert comes before the routed ones.
Only gate and up are looked at together with o, as if it were not rounded, which saves a pass and loses nothing that could be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.algorithms.correction import Mover
from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, sharing_stacks
from alphaquant.config import QuantizationConfig
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.models.on_demand import OnDemand
from alphaquant.models.shortfalls import Observed
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter
from alphaquant.resident import give_back_much

_LAST: frozenset[Role] = frozenset({"down"})
_DEPTHS: tuple[frozenset[Role], ...] = (
    frozenset({"q", "k", "v", "qkv", "q_a", "kv_a"}),
    frozenset({"q_b", "kv_b"}),
    frozenset({"o", "router", "gate", "up", "gate_up"}),
    _LAST,
    frozenset({"other"}),  # nobody knows where these stand
)

Observe: TypeAlias = Callable[[Sequence[LinearSpec], Mapping[str, Tensor]], Observed]
"""Linears, and the weights that stand in for all that are quantized before them, to what is gathered of their inputs."""


def solve_in_order(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observe: Observe,
    device: torch.device,
    config: QuantizationConfig,
    at_once: AtOnce | None = None,
) -> Iterator[Solved]:
    """Quantize a block's linears by the plan, depth by depth, corrected for what they lack where that was observed.

    `at_once` says how many experts of a shape are solved together at most.
    """
    codes: dict[str, QuantizedWeight] = {}

    def stored(name: str) -> Tensor:
        return codes[name].dequantize().to(checkpoint.dtype(f"{name}.weight"))

    shares: list[float] = []
    depths = [
        members
        for members in _depths(specs, corrects=config.corrects)
        if any(plan.schemes[spec.name].format != "bf16" for spec in members)
    ]
    for depth, members in enumerate(depths, start=1):
        seen = observe(members, OnDemand(codes, stored))
        for sharing in sharing_stacks(
            members, seen.hessians, config.expert_shrinkage, plan.schemes, at_once
        ):
            told = sharing[0].specs[0].input_key in seen.shortfalls
            moved = Mover(seen, config, shares) if told else None
            found = solve_stacks(checkpoint, sharing, plan.schemes, device, config, moved)
            del sharing  # or its Hessians would be in memory while the next ones are made
            while found:
                if depth < len(depths):  # somebody will look at what is behind them
                    stack, quantized = found[0].stack, found[0].quantized
                    codes |= {spec.name: quantized[at] for at, spec in enumerate(stack.specs)}
                    del stack, quantized
                yield found.pop(0)
        del seen, moved
        give_back_much()
    if shares:
        reporter().note(
            f"correction: {len(shares)} linears go {min(shares):.0%} to {max(shares):.0%} of the way to all that they lack"
        )


def _depths(specs: Sequence[LinearSpec], *, corrects: bool) -> Iterator[list[LinearSpec]]:
    routed = [spec for spec in specs if spec.expert is not None]
    for roles in _DEPTHS:
        members = [spec for spec in specs if spec.role in roles]
        if routed and not corrects:
            # what experts' down projections read is kept by nobody: they are looked at in the pass that runs gate and up
            if "gate" in roles:
                members = [spec for spec in specs if spec.role in roles | _LAST]
            elif roles == _LAST:
                continue
        if roles != _LAST:
            yield members
            continue
        yield [spec for spec in members if spec.expert is None]
        yield [spec for spec in members if spec.expert is not None]
