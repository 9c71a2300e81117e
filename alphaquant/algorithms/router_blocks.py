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
    walk = _Walk(BlockModel(checkpoint, device, compute_dtype(device)), windows)
    by_block = {spec.block: spec for spec in routers}
    found = BlockRepair()
    for index in track(range(checkpoint.blocks), "router block", checkpoint.blocks):
        walk.step(index, blocks[index], by_block.get(index), methods, config, found)
    found.kl_before, found.kl_after = walk.divergences(quantized_head(checkpoint, blocks))
    if found.kl_after >= found.kl_before:
        reporter().note("router: the repaired routers do not bring held-out predictions closer")
        found.tensors = untrained(checkpoint, blocks, routers)
        found.kl_after = found.kl_before
        found.changed_after, found.error_after = found.changed_before, found.error_before
    return found


class _Walk:
    """The windows on their way through both models, held-out ones first; two blocks are in memory, one of each."""

    def __init__(self, model: BlockModel, windows: Windows) -> None:
        self._model, self._held = model, len(windows.held)
        batches = windows.held + windows.train
        self._original = [model.embed(batch, batch.shape[0])[0].cpu() for batch in batches]
        model.release_embedding()
        self._ours = list(self._original)
        self._untouched = self._original[: self._held]  # held-out windows, without any repair

    def step(
        self,
        index: int,
        folder: Path,
        spec: LinearSpec | None,
        methods: Sequence[str],
        config: RouterConfig,
        found: BlockRepair,
    ) -> None:
        """Go through block `index`, and repair its router where it has one."""
        model, held = self._model, self._held
        weights = block_weights(model.checkpoint, index, folder)
        first, second = model.block(index), model.block(index, weights)
        if spec is None:
            for block, states in (
                (first, self._original),
                (second, self._ours),
                (second, self._untouched),
            ):
                states[:] = model.advance(block, index, states)
            return
        target = RouterBench(model, first, spec, self._original).look()
        plain = RouterBench(model, second, spec, self._untouched).look()
        bench = RouterBench(model, second, spec, self._ours)
        now = bench.look()
        energy = _mean_square(target.outputs[:held], self._original[:held])
        router = start = weights[spec.name]
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
        if router is not start:
            del now  # or what was seen before would be in memory beside what is seen now
            now = bench.look(router)
        found.tensors[spec.name] = router
        found.error_after.append(error)
        found.changed_before.append(plain.changed(target, held))
        found.changed_after.append(now.changed(target, held))
        self._original, self._ours, self._untouched = target.outputs, now.outputs, plain.outputs

    def divergences(self, quantized: Tensor | None) -> tuple[float, float]:
        """Mean KL in nats per token on held-out windows behind the last block, without any repair and with it.

        `quantized` is the head `[vocabulary, hidden]` of the quantized model, where it is not the original's.
        """
        model = self._model
        original = model.head()
        ours = original if quantized is None else model.head(quantized)
        return (
            self._divergence((original, ours), self._untouched),
            self._divergence((original, ours), self._ours[: self._held]),
        )

    def _divergence(self, heads: tuple[nn.Module, nn.Module], ours: Sequence[Tensor]) -> float:
        norm, device = self._model.final_norm, self._model.device
        with torch.no_grad():
            parts = [
                kl_divergence(heads[0], norm(a.to(device)), norm(b.to(device)), heads[1])
                for a, b in zip(self._original, ours, strict=False)
            ]
        return float(torch.cat(parts).mean())


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
