"""What end-to-end tuning keeps in memory: a refusal before it starts where that is not there, and how many windows fit.

All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alphaquant.algorithms.memory_needs import LOGITS
from alphaquant.algorithms.quantized_block import blocks_of, head_of, stored_sizes
from alphaquant.errors import ConfigError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype, free_within
from alphaquant.models.footprint import embedding_entry, routed_experts, window_bytes
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter
from alphaquant.sizes import size_text

_PER_GROUP = 6 * 4  # scale, factor, gradient, two moments, the best so far: fp32
_PER_RUNNING_WEIGHT = 12  # of the block that runs: measured, 8 in steps and 12 while it is opened


@dataclass(frozen=True)
class TuningNeeds:
    """Bytes that tuning the whole model takes."""

    weights: int
    """Codes, scales and what is made of them, the largest block as it runs, embedding and heads."""
    states: int
    """Last hidden states of the original for all windows, and logits of one."""
    window: int
    """Activations of one window in a block, and what enters each block."""

    @property
    def least(self) -> int:
        """With one window at a time."""
        return self.weights + self.states + self.window

    def fitting(self, wanted: int, room: int) -> int:
        """How many of the `wanted` windows are computed at once: at least one."""
        return max(1, min(wanted, (room - self.weights - self.states) // self.window))


def foreseen_sizes(plan: QuantPlan, blocks: int) -> list[tuple[int, int]]:
    """Numbers of codes and of scales of every block by a plan."""
    sizes = [[0, 0] for _ in range(blocks)]
    for spec in plan.specs:
        scheme = plan.schemes[spec.name]
        if spec.block is not None and scheme.format != "bf16":
            sizes[spec.block][0] += spec.size
            sizes[spec.block][1] += spec.rows * scheme.groups(spec.cols)
    return [(codes, groups) for codes, groups in sizes]


def tuning_needs(
    checkpoint: Checkpoint,
    sizes: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    device: torch.device,
    *,
    own_head: bool,
) -> TuningNeeds:
    """What tuning on windows of a `shape` (windows, length) takes; `sizes` are numbers of codes and of scales by block.

    `own_head`: the quantized model has a head that is not the original's.
    """
    (windows, length), each = shape, compute_dtype(device).itemsize
    codes, groups = (sum(numbers) for numbers in zip(*sizes, strict=True))
    vocabulary, hidden = embedding_entry(checkpoint).shape
    # a tied head is a tensor of its own here, and a quantized one stands beside the original's
    more = bool(checkpoint.config.tie_word_embeddings) + own_head
    kept = (checkpoint.parameters - codes + more * vocabulary * hidden) * each
    largest = max(weights for weights, _ in sizes)
    state = length * hidden * each
    return TuningNeeds(
        weights=codes + _PER_GROUP * groups + kept + _PER_RUNNING_WEIGHT * largest,
        # a GPU's wait in the CPU's memory
        states=(windows * state if device.type == "cpu" else 0) + LOGITS * 4 * length * vocabulary,
        window=window_bytes(checkpoint, length, each, experts=routed_experts(checkpoint))
        + checkpoint.blocks * state,
    )


def needs_behind(
    checkpoint: Checkpoint, folders: Sequence[Path], shape: tuple[int, int], device: torch.device
) -> TuningNeeds:
    """The same of the finished blocks, and head, in `folders`."""
    sizes = [stored_sizes(folder) for folder in blocks_of(checkpoint, folders)]
    own_head = head_of(checkpoint, folders) is not None
    return tuning_needs(checkpoint, sizes, shape, device, own_head=own_head)


def windows_that_fit(
    needs: TuningNeeds, device: torch.device, wanted: int, limit: int | None, so_far: str = ""
) -> int:
    """How many of the `wanted` windows are computed at once: fewer only where a memory `limit` asks for it.

    Raises ConfigError where not even one fits below the limit, or the weights into what is free; `so_far` tells then what is
    there already.
    """
    free = free_within(limit, device)
    if free is None:
        return wanted
    # without a limit a batch that is too large is halved when memory runs out
    least = needs.weights if limit is None else needs.least
    if least > free:
        place = f"{device} has {size_text(max(free, 0))} free"
        if limit is not None:
            place += f" within execution.memory_limit={size_text(limit)}"
        raise ConfigError(
            f"quantization.tune=model needs {size_text(least, least=True)}, and {place}: {size_text(needs.weights)} for this "
            f"model's codes, scales and largest block, {size_text(needs.states)} for the original's answers, "
            f"{size_text(needs.window)} for a window. Take more memory, fewer calibration.samples of a shorter "
            f"calibration.sequence_length, or quantization.tune=block.{so_far}"
        )
    if limit is None or (fitting := needs.fitting(wanted, free)) == wanted:
        return wanted
    reporter().note(
        f"quantization.tune=model: {fitting} instead of {wanted} windows are computed at once, as {size_text(free)} are free"
    )
    return fitting
