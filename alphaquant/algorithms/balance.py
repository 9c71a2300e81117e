"""Calibration windows that reach every expert: chosen from a larger pool so that expert loads even out."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.streamed import last_hidden_and_choices


def expert_loads(
    checkpoint: Checkpoint,
    tokens: Tensor,  # [windows, length]
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """How many tokens of every window each expert of the original sees, `[windows, MoE blocks, experts]`.

    Without MoE blocks the second dimension is 0. One block of the model is in memory.
    """
    model = BlockModel(checkpoint, device, compute_dtype(device))
    routers = {
        spec.block: spec
        for spec in checkpoint.specs
        if spec.role == "router" and spec.rows > 1 and spec.block is not None
    }
    _, seen = last_hidden_and_choices(model, tokens.split(batch_size), routers, "routing block")
    loads: list[Tensor] = []
    for index, choices in seen.items():
        chosen = torch.cat(choices).view(tokens.shape[0], -1)  # [windows, tokens * k]
        counts = torch.zeros(tokens.shape[0], routers[index].rows, dtype=torch.int64)
        loads.append(counts.scatter_add_(1, chosen, torch.ones_like(chosen)))
    if not loads:
        return torch.zeros(tokens.shape[0], 0, 0, dtype=torch.int64)
    return torch.stack(loads, 1)


def balanced_choice(loads: Tensor, count: int) -> list[int]:
    """Which `count` of the windows to take, in the order in which they are chosen.

    Greedy: each time the window with which the loads `[windows, blocks, experts]` so far come closest to
    even ones, by the sum of their squares; the first one among equals.
    """
    flat = loads.flatten(1).double()  # [windows, blocks * experts]
    taken = torch.zeros(flat.shape[0], dtype=torch.bool)
    total = torch.zeros(flat.shape[1], dtype=torch.float64)
    order: list[int] = []
    for _ in range(count):
        unevenness = (total + flat).square().sum(-1).masked_fill(taken, torch.inf)
        best = int(unevenness.argmin())
        taken[best] = True
        total += flat[best]
        order.append(best)
    return order


def idlest_share(loads: Tensor) -> float:
    """Tokens of the idlest expert of any block, relative to an even load."""
    total = loads.sum(0).double()  # [blocks, experts]
    return float((total / total.mean(-1, keepdim=True)).min())
