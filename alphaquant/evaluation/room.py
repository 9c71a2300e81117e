"""Room: where evaluation computes, whether a whole model fits there, and how many windows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alphaquant.errors import ConfigError
from alphaquant.evaluation.predictions import POSITIONS
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype, free_memory
from alphaquant.progress import reporter
from alphaquant.sizes import size_text

_SLICE_COPIES = 6
"""fp32 tensors `[positions, vocabulary]` at one time while two models are compared."""
_STATES, _WIDEST = 6, 4
"""Copies of a token's hidden state, and of the widest thing made of it, in a decoder block."""
_USED = 0.8
"""Share of what is free that is used: estimates leave out what allocators keep."""
_FILLED = 0.9
"""Share of what is free that weights may fill: windows pass through the rest."""


@dataclass(frozen=True)
class Room:
    """A device and what may be taken of it."""

    device: torch.device
    batch_size: int
    """Windows per forward pass, at most."""
    memory_limit: int | None = None
    """Bytes that evaluation may take beside what is held already, weights included; None for all that is free."""

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the whole model fits; loading it leads through the CPU's memory."""
        return self._too_little(checkpoint) is None

    def check_tasks(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError where the whole model does not fit, which lm-eval needs."""
        if found := self._too_little(checkpoint):
            place, free = found
            needed = checkpoint.whole_bytes(compute_dtype(self.device))
            limit = "execution.memory_limit" if free == self.memory_limit else "free memory"
            raise ConfigError(
                f"evaluation.tasks need the whole model of {checkpoint.path} in memory: {size_text(needed, least=True)} of "
                f"weights as {self.device.type} computes with them, where {limit} of {place} is {size_text(max(free, 0))}. "
                "Set evaluation.tasks=[] (perplexity and KL are then computed block by block), or take a larger device."
            )

    def _too_little(self, checkpoint: Checkpoint) -> tuple[str, int] | None:
        """Where weights do not fit, and what is free there."""
        needed = checkpoint.whole_bytes(compute_dtype(self.device))
        for place in {self.device.type: self.device, "cpu": torch.device("cpu")}.values():
            free = self._free(place)
            if free is not None and needed > _FILLED * free:
                return str(place), free
        return None

    def batch_beside(
        self, checkpoint: Checkpoint, length: int, *, whole_logits: bool = False
    ) -> int:
        """As `batch`, beside the whole model, which is loaded."""
        weights = checkpoint.whole_bytes(compute_dtype(self.device))
        return self.batch(checkpoint, length, weights=weights, whole_logits=whole_logits)

    def batch(
        self, checkpoint: Checkpoint, length: int, *, weights: int = 0, whole_logits: bool = False
    ) -> int:
        """Windows of `length` tokens that fit into what is free: `batch_size` or fewer, at least one.

        `weights` are the bytes of what is loaded, for they count within `memory_limit`; with `whole_logits` the
        logits of all positions exist at one time, as in lm-eval. Fewer than asked for are told in a note.
        """
        free = self._free(self.device, weights)
        if free is None:
            return self.batch_size
        size = compute_dtype(self.device).itemsize
        vocabulary = _vocabulary(checkpoint)
        each = window_bytes(checkpoint, length, size)
        if whole_logits:
            each += length * vocabulary * (size + 8)
        left = _USED * free - _SLICE_COPIES * 4 * POSITIONS * vocabulary
        fitting = max(1, min(self.batch_size, int(left // each)))
        if fitting < self.batch_size:
            reporter().note(
                f"evaluation: {fitting} instead of {self.batch_size} windows per forward pass, as {size_text(max(free, 0))} are "
                "free"
            )
        return fitting

    def _free(self, device: torch.device, weights: int = 0) -> int | None:
        free = free_memory(device)
        if self.memory_limit is None:
            return free
        allowed = self.memory_limit - weights
        return allowed if free is None else min(free, allowed)


def window_bytes(checkpoint: Checkpoint, length: int, size: int) -> int:
    """What a window takes in a decoder block, from above: attention's scores are counted as if they were kept.

    `size` is that of a number in bytes.
    """
    config = checkpoint.raw_config
    decoder = [spec for spec in checkpoint.specs if spec.block is not None]
    hidden = checkpoint.entries[f"{checkpoint.architecture.embedding}.weight"].shape[1]
    widest = max(max(spec.rows, spec.cols) for spec in decoder)
    experts = int(config.get("num_experts_per_tok") or 1)
    heads = int(config.get("num_attention_heads") or 1)
    states = length * (_STATES * hidden + _WIDEST * widest * experts)
    return (states + 2 * heads * length**2) * size


def _vocabulary(checkpoint: Checkpoint) -> int:
    return checkpoint.entries[f"{checkpoint.architecture.embedding}.weight"].shape[0]
