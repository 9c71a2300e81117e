"""Passes through all blocks of a model, one block after the other, and what they take of memory.

All sizes are bytes. A pass keeps the hidden states of all its windows, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from alphaquant.config import RouterConfig
from alphaquant.evaluation.predictions import POSITIONS
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.footprint import (
    block_bytes,
    embedding_entry,
    routed_experts,
    stored_table_bytes,
    table_bytes,
    window_bytes,
)
from alphaquant.sizes import size_text

_SLICE_COPIES = 6
"""fp32 tensors `[positions, vocabulary]` at one time while two models are compared."""


@dataclass(frozen=True)
class Pass:
    """Who goes through the blocks, and what it has there at one time."""

    who: str
    lower: str
    """Config keys that make it take less."""
    blocks: int = 1
    states: float = 1
    """Hidden states of all windows, so many times."""
    together: int = 1
    """Windows that are never fewer in a forward pass."""
    learns: bool = False
    """Whether gradients come back, for which the activations of all experts of a token are kept."""
    predicts: bool = True
    """Whether two models' predictions are compared at the end."""
    remembers: bool = False
    """Whether the original's head is there from the beginning, and hidden states are put together at the end."""


EVALUATING = Pass(
    "evaluation block by block",
    "evaluation.limit or evaluation.sequence_length",
    remembers=True,
)
BALANCING = Pass(
    "calibration.balance",
    "calibration.balance, calibration.samples or calibration.sequence_length",
    predicts=False,
)


def repairing(config: RouterConfig) -> Pass | None:
    """What `router.method` does block by block; None where it does nothing there."""
    steps = config.method.split("+")
    if not {"align", "block"} & set(steps):
        return None
    return Pass(
        f"router.method={config.method}",
        "calibration.samples, calibration.sequence_length or router.batch_size",
        blocks=2,
        # before a block and behind it, of both models, what their routers are handed and answer, and the held-out ones of
        # the model that stays unrepaired; measured 7.0
        states=7,
        together=config.batch_size,
        learns="block" in steps,
    )


@dataclass(frozen=True)
class PassNeeds:
    """Bytes that a pass takes."""

    hidden: int
    """Of all windows."""
    block: int
    """Of those that are there at one time."""
    window: int
    together: int
    """Windows at one time, at least."""
    head: int
    """The original's; the embedding is as large."""
    comparing: int
    """While the second head is read, or slices of logits are compared."""
    way: Pass

    @property
    def heads(self) -> int:
        """Of both models, or the embedding, which is as large."""
        return (2 if self.way.predicts else 1) * self.head

    @property
    def beside(self) -> int:
        """What is there while blocks are run, whatever the number of windows in a forward pass."""
        return self.hidden + self.block + (self.head if self.way.remembers else 0)

    @property
    def least(self) -> int:
        """With as few windows at a time as may be."""
        running = self.beside + self.together * self.window
        put_together = 2 * self.hidden + self.head if self.way.remembers else 0
        return max(running, self.hidden + self.heads + self.comparing, put_together)

    def described(self, windows: int) -> str:
        """Its parts, for people; `windows` are all there are."""
        parts = [
            f"{size_text(self.block)} for the largest block",
            f"{size_text(self.together * self.window)} for {_counted(self.together)}",
            f"{size_text(self.heads)} for {'two heads' if self.way.predicts else 'the embedding'}",
            f"{size_text(self.hidden)} for the hidden states of {windows} windows",
        ]
        return ", ".join(parts)


def pass_needs(
    checkpoint: Checkpoint, windows: int, length: int, way: Pass, itemsize: int, *, waits: bool
) -> PassNeeds:
    """What `way` takes with so many `windows` of `length` tokens, in numbers of `itemsize` bytes.

    Hidden states count where they wait on the device that computes (`waits`): a GPU's wait in the CPU's memory.
    """
    states = windows * length * embedding_entry(checkpoint).shape[1] * itemsize
    # a byte a number for codes that are decoded, one linear at a time
    decoding = 8 * max(spec.size for spec in checkpoint.specs if spec.block is not None)
    experts = routed_experts(checkpoint) if way.learns else 1
    slices = slice_bytes(checkpoint) if way.predicts else 0
    return PassNeeds(
        hidden=int(way.states * states) if waits else 0,
        block=way.blocks * block_bytes(checkpoint, itemsize + 1) + decoding,
        window=window_bytes(checkpoint, length, itemsize, experts=experts),
        together=min(way.together, windows),
        head=table_bytes(checkpoint, itemsize),
        comparing=max(stored_table_bytes(checkpoint, itemsize), slices),
        way=way,
    )


def slice_bytes(checkpoint: Checkpoint) -> int:
    """What comparing two models' predictions takes besides."""
    return _SLICE_COPIES * 4 * POSITIONS * embedding_entry(checkpoint).shape[0]


def _counted(windows: int) -> str:
    return "a window" if windows == 1 else f"{windows} windows"
