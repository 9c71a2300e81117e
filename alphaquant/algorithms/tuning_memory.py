"""What end-to-end tuning keeps in memory, and a refusal before it starts where that is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from alphaquant.algorithms.quantized_block import blocks_of, head_of, stored_sizes
from alphaquant.errors import ConfigError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype, free_memory
from alphaquant.sizes import size_text

_PER_GROUP = 6 * 4  # scale, factor, gradient, two moments, the best so far: fp32
_PER_RUNNING_WEIGHT = 12  # of the block that runs: measured, 8 in steps and 12 while it is opened


def bytes_needed(checkpoint: Checkpoint, folders: Sequence[Path], device: torch.device) -> int:
    """Bytes of weights, scales and what is made of them; activations, which the batch decides, come on top."""
    sizes = [stored_sizes(folder) for folder in blocks_of(checkpoint, folders)]
    codes, groups = sum(weights for weights, _ in sizes), sum(groups for _, groups in sizes)
    kept = (checkpoint.parameters - codes) * compute_dtype(device).itemsize
    # a tied head is a tensor of its own here, and a quantized one stands beside the original's
    more = bool(checkpoint.config.tie_word_embeddings) + (head_of(checkpoint, folders) is not None)
    head = checkpoint.entries[f"{checkpoint.architecture.embedding}.weight"]
    kept += more * math.prod(head.shape) * compute_dtype(device).itemsize
    largest = max((weights for weights, _ in sizes), default=0)
    return codes + _PER_GROUP * groups + kept + _PER_RUNNING_WEIGHT * largest


def require_memory(checkpoint: Checkpoint, folders: Sequence[Path], device: torch.device) -> None:
    """Raise ConfigError where the device has less memory free than the model's weights need."""
    free = free_memory(device)
    needed = bytes_needed(checkpoint, folders, device)
    if free is not None and needed > free:
        raise ConfigError(
            f"quantization.tune=model needs {size_text(needed, least=True)} for this model's weights, and {device} has "
            f"{size_text(free)} free. Take a device with more, or quantization.tune=block: the blocks are "
            "finished and kept."
        )
