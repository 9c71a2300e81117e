"""Routers repaired one decoder block at a time, each on what the repaired blocks before it hand on.

The original and the quantized model go through the windows side by side, one block of either in memory. A
repaired router stays where it brings the block's output on held-out windows closer to the original's, and
all of them stay only if the held-out predictions come closer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from alphaquant.algorithms.quantized_block import (
    block_weights,
    kept,
    kept_weight,
    quantized_head,
)
from alphaquant.algorithms.router_bench import RouterBench
from alphaquant.algorithms.router_kl import kl_divergence
from alphaquant.algorithms.router_windows import Windows
from alphaquant.config import RouterConfig
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.progress import reporter, track


@dataclass
class BlockRepair:
    """Repaired routers and what they changed, on held-out windows throughout; lists are by MoE block."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Router weights `[experts, hidden]` by linear name, in the checkpoint's dtype."""
    kl_before: float = 0.0
    kl_after: float = 0.0
    """Nats per token, original against quantized."""
    changed_before: list[float] = field(default_factory=list)
    changed_after: list[float] = field(default_factory=list)
    """Share of tokens whose set of experts differs from the original's."""
    error_before: list[float] = field(default_factory=list)
    error_after: list[float] = field(default_factory=list)
    """Squared error of the block's output behind repaired blocks, with the router as it was and as it is,
    relative to what the original's block adds to its input."""


def repair_by_block(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Sequence[LinearSpec],
    windows: Windows,
    config: RouterConfig,
    methods: Sequence[str],
    *,
    device: torch.device,
) -> BlockRepair:
    """Repair `routers` of the model in `blocks` by align (closed form), block (trained), or both in order."""
    model = BlockModel(checkpoint, device, compute_dtype(device))
    held = len(windows.held)
    batches = windows.held + windows.train
    original = [model.embed(batch, batch.shape[0])[0].cpu() for batch in batches]
    ours, untouched = list(original), original[:held]
    by_block = {spec.block: spec for spec in routers}
    found = BlockRepair()
    for index in track(range(checkpoint.blocks), "router block", checkpoint.blocks):
        weights = block_weights(checkpoint, index, blocks[index])
        first, second = model.block(index), model.block(index, weights)
        spec = by_block.get(index)
        if spec is None:
            original = list(model.advance(first, index, original))
            ours = list(model.advance(second, index, ours))
            untouched = list(model.advance(second, index, untouched))
            continue
        target = RouterBench(model, first, spec, original).look()
        plain = RouterBench(model, second, spec, untouched).look()
        bench = RouterBench(model, second, spec, ours)
        now = bench.look()
        energy = _mean_square(target.outputs[:held], original[:held])
        router = weights[spec.name]
        error = bench.error(router, target, held) / energy
        found.error_before.append(error)
        for method in methods:
            if method == "align":
                new = bench.aligned(router, target, now, held)
            else:
                new = bench.tuned(router, target, energy, held, config)
            new = kept(new.to(router.dtype)).cpu()
            if (least := bench.error(new, target, held) / energy) < error:
                router, error = new, least
        if router is not weights[spec.name]:
            now = bench.look(router)
        found.tensors[spec.name] = router
        found.error_after.append(error)
        found.changed_before.append(plain.changed(target, held))
        found.changed_after.append(now.changed(target, held))
        original, ours, untouched = target.outputs, now.outputs, plain.outputs
    heads = model.head(), model.head(quantized_head(checkpoint, blocks))
    found.kl_before = _divergence(model, heads, original, untouched)
    found.kl_after = _divergence(model, heads, original, ours[:held])
    if found.kl_after >= found.kl_before:
        reporter().note("router: the repaired routers do not bring held-out predictions closer")
        found.tensors = untrained(checkpoint, blocks, routers)
        found.kl_after = found.kl_before
        found.changed_after, found.error_after = found.changed_before, found.error_before
    return found


def untrained(
    checkpoint: Checkpoint, blocks: Sequence[Path], routers: Sequence[LinearSpec]
) -> dict[str, Tensor]:
    """Routers `[experts, hidden]` by linear name as the blocks hold them."""
    return {
        spec.name: kept_weight(checkpoint, spec.name, blocks[spec.block])
        for spec in routers
        if spec.block is not None
    }


def _mean_square(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """Mean square of what a block adds to its input."""
    added = [
        (a.float() - b.float()).square().flatten() for a, b in zip(outputs, inputs, strict=True)
    ]
    return max(float(torch.cat(added).mean()), 1e-30)


def _divergence(
    model: BlockModel,
    heads: tuple[nn.Module, nn.Module],
    original: Sequence[Tensor],
    ours: Sequence[Tensor],
) -> float:
    """Mean KL in nats per token behind the last block, over the batches of `ours`; `heads` are original and ours."""
    norm, device = model.final_norm, model.device
    with torch.no_grad():
        parts = [
            kl_divergence(heads[0], norm(a.to(device)), norm(b.to(device)), heads[1])
            for a, b in zip(original, ours, strict=False)
        ]
    return float(torch.cat(parts).mean())
