"""Room: where evaluation computes, whether a whole model fits there, and how many windows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alphaquant.errors import ConfigError
from alphaquant.evaluation.passes import EVALUATING, Pass, PassNeeds, pass_needs, slice_bytes
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import calibration_dtype, compute_dtype, free_within
from alphaquant.models.footprint import embedding_entry, routed_experts, window_bytes
from alphaquant.progress import reporter
from alphaquant.sizes import size_text

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
    """Bytes that the process may take, or its tensors of a GPU; None for all that is free."""

    def holds(self, checkpoint: Checkpoint, beside: int = 0) -> bool:
        """Whether the whole model fits, and so many bytes `beside` it; loading it leads through the CPU's memory."""
        return self._too_little(self._scoring_bytes(checkpoint) + beside) is None

    def check_tasks(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError where the whole model does not fit, which lm-eval needs."""
        self._require_whole(
            checkpoint,
            "evaluation.tasks need",
            "evaluation.tasks=[] (perplexity and KL are then computed block by block)",
            self._scoring_bytes(checkpoint),
        )

    def check_writing(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError where the whole model does not fit: block by block, it would be read once for every token."""
        needed = self._writing_bytes(checkpoint)
        self._require_whole(
            checkpoint, "calibration.generated needs", "calibration.generated=0", needed
        )

    def beside_writing(self, checkpoint: Checkpoint, wanted: int, each: int) -> int:
        """How many things of `each` so many bytes fit beside the whole model that writes, not loaded yet: at least one."""
        return _most(wanted, self._free(self.device), each, self._writing_bytes(checkpoint))

    def _writing_bytes(self, checkpoint: Checkpoint) -> int:
        return checkpoint.whole_bytes(calibration_dtype(self.device, checkpoint.config.hidden_size))

    def _require_whole(
        self, checkpoint: Checkpoint, who_needs: str, instead: str, needed: int
    ) -> None:
        if found := self._too_little(needed):
            place, free = found
            limit = "free memory"
            if self.memory_limit is not None:
                limit = f"free memory within execution.memory_limit={size_text(self.memory_limit)}"
            raise ConfigError(
                f"{who_needs} the whole model of {checkpoint.path} in memory: {size_text(needed, least=True)} of "
                f"weights as {self.device.type} computes with them, where {limit} of {place} is {size_text(max(free, 0))}. "
                f"Set {instead}, or take a larger device."
            )

    def _scoring_bytes(self, checkpoint: Checkpoint) -> int:
        return checkpoint.whole_bytes(compute_dtype(self.device))

    def _too_little(self, needed: int) -> tuple[str, int] | None:
        """Where so many bytes do not fit, and what is free there."""
        for place in {self.device.type: self.device, "cpu": torch.device("cpu")}.values():
            free = self._free(place)
            if free is not None and needed > _FILLED * free:
                return str(place), free
        return None

    def batch(self, checkpoint: Checkpoint, length: int, *, whole_logits: bool = False) -> int:
        """Windows of `length` tokens that fit beside the whole model, which is loaded: `batch_size` or fewer, at least one.

        With `whole_logits` the logits of all positions exist at one time, as in lm-eval. Fewer than asked for are told in a note.
        """
        size = compute_dtype(self.device).itemsize
        each = window_bytes(checkpoint, length, size, experts=routed_experts(checkpoint))
        if whole_logits:
            each += length * _vocabulary(checkpoint) * (size + 8)
        return self._fitting(self._free(self.device), each, slice_bytes(checkpoint))

    def batch_by_block(
        self, checkpoint: Checkpoint, windows: int, length: int, way: Pass = EVALUATING
    ) -> int:
        """The same where blocks are read one after the other and the hidden states of all `windows` are kept.

        Raises ConfigError as `check_blocks` does.
        """
        needs = self._checked(checkpoint, windows, length, way)
        return self._fitting(self._free(self.device), needs.window, needs.beside, way.who)

    def check_blocks(
        self, checkpoint: Checkpoint, windows: int, length: int, way: Pass = EVALUATING
    ) -> None:
        """Raise ConfigError where not even the fewest of `windows` at a time stay within `memory_limit`, block by block."""
        self._checked(checkpoint, windows, length, way)

    def _checked(self, checkpoint: Checkpoint, windows: int, length: int, way: Pass) -> PassNeeds:
        free, size = self._free(self.device), compute_dtype(self.device).itemsize
        waits = self.device.type == "cpu"
        needs = pass_needs(checkpoint, windows, length, way, size, waits=waits)
        if self.memory_limit is not None and free is not None and needs.least > free:
            raise ConfigError(
                f"{way.who} needs {size_text(needs.least, least=True)}, and execution.memory_limit="
                f"{size_text(self.memory_limit)} leaves {size_text(max(free, 0))} for it: {needs.described(windows)}. "
                f"Raise the limit, or lower {way.lower}."
            )
        return needs

    def _fitting(self, free: int | None, each: int, fixed: int, who: str = "evaluation") -> int:
        """How many windows of `each` so many bytes fit into what is `free`, beside what is `fixed`."""
        fitting = _most(self.batch_size, free, each, fixed)
        if free is not None and fitting < self.batch_size:
            reporter().note(
                f"{who}: {fitting} instead of {self.batch_size} windows per forward pass, as {size_text(max(free, 0))} are "
                "free"
            )
        return fitting

    def _free(self, device: torch.device) -> int | None:
        return free_within(self.memory_limit, device)


def _most(wanted: int, free: int | None, each: int, fixed: int) -> int:
    """How many of the `wanted` fit into the usable share of what is `free`, beside what is `fixed`: at least one."""
    if free is None:
        return wanted
    return max(1, min(wanted, int((_USED * free - fixed) // each)))


def _vocabulary(checkpoint: Checkpoint) -> int:
    return embedding_entry(checkpoint).shape[0]
