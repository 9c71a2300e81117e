"""A model quantized into a folder, from its config to its blocks: what the library does where runs have stages and a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_groups import menu
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import RunConfig
from alphaquant.evaluation.generated import with_written
from alphaquant.evaluation.room import Room
from alphaquant.export.rotated import write_rotated
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what it was made of."""

    folder: Path
    """Holds the blocks, and the weights where they were rotated."""
    weights: Checkpoint
    """What was rounded: the original, or what a rotation made of it."""
    plan: QuantPlan
    """A scheme for every linear."""
    blocks: list[Path]


def quantized_in(
    folder: Path,
    original: Checkpoint,
    tokens: Tensor,  # [windows, length]
    run: RunConfig,
    *,
    device: torch.device,
    batch_size: int,
) -> Quantized:
    """Quantize into `folder`, which is there and empty, on calibration `tokens`, of which the model writes its share anew.

    Raises ModelError for a model that a rotation would change, PlanError for a plan that cannot be, both before the
    model writes, and ConfigError where it does not fit into memory as a whole, which writing takes.
    """
    rounding, text, room = run.quantization, run.calibration, Room(device, batch_size)
    weights, plan = original, None
    if run.rotation.kind != "none":
        write_rotated(original, run.rotation, folder / "rotated")
        weights = Checkpoint(folder / "rotated")
    if run.allocation.policy != "budget":
        plan = allocate(weights.plannable, run.allocation, rounding, None, None)
    if text.generated and (plan is None or rounding.looks_at_inputs):
        tokens = with_written(original, tokens, text.generated, text.seed, room)
    if plan is None:
        losses = sensitivity_table(
            weights,
            tokens,
            menu(run.allocation, rounding),
            damping=rounding.damping,
            scale_search=rounding.scale_search,
            expert_shrinkage=rounding.expert_shrinkage,
            routing_weight=rounding.routing_weight,
            device=device,
            batch_size=batch_size,
        )
        plan = allocate(weights.plannable, run.allocation, rounding, None, losses)
    blocks = quantize_blocks(
        weights,
        plan,
        tokens,
        rounding,
        device=device,
        batch_size=batch_size,
        blocks=FreshBlocks(folder),
    )
    return Quantized(folder, weights, plan, blocks)
