"""What tuning and correction of a block learn from: its inputs, what it should answer, and what becomes of its answers.

Not every error of a block's output matters alike, and the original's next block tells which do: it is run on the
tuned block's output, and its answer is compared too. Behind the last block stand the final norm and the head, so
there the divergence of the predictions is all that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from alphaquant.algorithms.block_order import Observe
from alphaquant.algorithms.router_kl import full_kl

RunBlock: TypeAlias = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Weights by linear and inputs `[windows, length, hidden]` to the block's outputs."""
Chosen: TypeAlias = Tensor | Sequence[int]
"""Numbers of windows."""
Sequel: TypeAlias = Callable[[Tensor, Chosen], Tensor]
"""The block's outputs for chosen windows to a loss of what the original makes of them, a mean over tokens."""


@dataclass(frozen=True)
class Lesson:
    """A block's inputs and targets `[windows, length, hidden]`; windows come in the same order every time."""

    run: RunBlock
    inputs: Tensor
    targets: Tensor
    observe: Observe | None = None
    """For correction."""
    sequel: Sequel | None = None
    """None: only the block's own answers count."""
    last: bool = False
    """Whether the sequel alone counts."""
    batch_size: int = 8
    """Windows at most that are computed at once."""

    def loss(self, weights: Mapping[str, Tensor], chosen: Chosen) -> Tensor:
        """What tuning makes small."""
        output = self.run(weights, self.inputs[chosen])
        if self.sequel is None:
            return squared_error(output, self.targets[chosen])
        loss = self.sequel(output, chosen)
        return loss if self.last else loss + squared_error(output, self.targets[chosen])

    def error(self, weights: Mapping[str, Tensor], chosen: Chosen) -> Tensor:
        """Squared error of the block's own answers."""
        return squared_error(self.run(weights, self.inputs[chosen]), self.targets[chosen])


def next_block(run: Callable[[Tensor], Tensor], targets: Tensor) -> Sequel:
    """The sequel in the middle: `run` is the original's next block, `targets` what it answers to the original."""
    return lambda output, chosen: squared_error(run(output), targets[chosen])


def predictions(norm: nn.Module, head: nn.Module, targets: Tensor) -> Sequel:
    """The sequel at the end: divergence from what the original predicts of its last hidden states `targets`."""

    def sequel(output: Tensor, chosen: Chosen) -> Tensor:
        with torch.no_grad():
            original = norm(targets[chosen])
        return full_kl(head, original, norm(output))

    return sequel


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens and channels, in fp32."""
    return (output.float() - target.float()).square().mean()
