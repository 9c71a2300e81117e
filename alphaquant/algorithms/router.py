"""Router repair: only the routers of a quantized model change, to undo what rounding did to routing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.router_blocks import repair_by_block, untrained
from alphaquant.algorithms.router_training import train_routers
from alphaquant.algorithms.router_windows import split_windows
from alphaquant.clock import timed
from alphaquant.config import RouterConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import all_cores
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan


@dataclass(frozen=True)
class RouterResult:
    """Repaired routers and what they changed, on held-out windows throughout."""

    tensors: dict[str, Tensor]
    """Router weights `[experts, hidden]` by linear name, in the checkpoint's dtype."""
    kl_before: float
    kl_after: float
    """Nats per token, original against quantized."""
    blocks: list[int]
    changed_before: list[float]
    changed_after: list[float]
    """Per MoE block, share of tokens whose set of experts differs from the original's."""
    error_before: list[float]
    error_after: list[float]
    """Per MoE block, relative squared error of its output where routers are repaired by block; else NaN."""
    history: list[dict[str, float]] = field(default_factory=list)
    """step, train_loss, heldout_kl of end-to-end training."""


def trainable_routers(checkpoint: Checkpoint, plan: QuantPlan) -> list[LinearSpec]:
    """Routers over experts that the plan keeps unquantized."""
    return [
        spec
        for spec in plan.specs
        if spec.role == "router" and spec.rows > 1 and plan.schemes[spec.name].format == "bf16"
    ]


@all_cores()
@timed("tuning")
def repair_routers(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Sequence[LinearSpec],
    tokens: Tensor,  # [windows, length]
    config: RouterConfig,
    *,
    device: torch.device,
) -> RouterResult:
    """Repair `routers` of the model in `blocks`, by one method or by two, one after the other.

    Raises DataError for fewer than two windows: one to learn from and one to hold out.
    """
    windows = split_windows(tokens, config)
    steps = config.method.split("+")
    one_by_one = [step for step in steps if step in ("align", "block")]
    start = untrained(checkpoint, blocks, routers)
    local = trained = None
    if one_by_one:
        local = repair_by_block(
            checkpoint, blocks, routers, windows, config, one_by_one, device=device
        )
        start = local.tensors
    if steps[-1] in ("kl", "ce"):
        trained = train_routers(
            checkpoint, blocks, routers, windows, config, steps[-1], start, device=device
        )
    first, last = local or trained, trained or local
    if first is None or last is None:
        raise ValueError(f"router.method {config.method} repairs nothing")
    unknown = [math.nan] * len(routers)
    return RouterResult(
        last.tensors,
        first.kl_before,
        last.kl_after,
        [int(spec.block) for spec in routers if spec.block is not None],
        first.changed_before,
        last.changed_after,
        local.error_before if local else unknown,
        local.error_after if local else unknown,
        trained.history if trained else [],
    )
