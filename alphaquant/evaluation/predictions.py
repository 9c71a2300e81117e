"""What a model predicts on token windows: its last hidden states, and the head that makes logits of them.

Hidden states are exact, and smaller than logits by vocabulary over width. Logits exist for one slice of one
window's positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.linalg.products import passes_of
from alphaquant.models.experts import dense_passes, has_experts
from alphaquant.models.head import Head
from alphaquant.progress import track

POSITIONS = 256
"""Positions whose logits exist at one time."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The next-token distributions of one model on some windows."""

    hidden: Iterable[Tensor]
    """Per window, states behind the final norm `[length, hidden]`."""
    head: nn.Module
    """`[..., hidden]` to logits `[..., vocabulary]`."""


class WholeModel:
    """A causal language model in memory, on `device`, that reads `batch_size` windows at a time."""

    def __init__(self, model: nn.Module, device: torch.device | str, batch_size: int) -> None:
        self._model: Any = model.eval()
        self._device, self._batch_size = device, batch_size
        self._like = next(model.parameters())
        self._routed = has_experts(model)

    def predictions(self, windows: Tensor, what: str | None = None) -> Predictions:
        """For int64 `[windows, length]`, computed as the hidden states are asked for; `what` names the progress."""
        return Predictions(self._hidden(windows, what), Head(self._model))

    @torch.no_grad()
    def _hidden(self, windows: Tensor, what: str | None) -> Iterator[Tensor]:
        batches = windows.split(self._batch_size)
        for batch in track(batches, what, len(batches)) if what else batches:
            with dense_passes(self._routed, batch.numel(), self._like):
                output = self._model.model(input_ids=batch.to(self._device), use_cache=False)
            yield from output.last_hidden_state


def log_probabilities(head: nn.Module, hidden: Tensor) -> Tensor:
    """fp32 log-probabilities `[..., vocabulary]` of the next tokens, where the head is."""
    like = next(head.parameters(), hidden)
    hidden = hidden.to(like.device, like.dtype)
    with passes_of(POSITIONS, hidden):  # slices have few sizes
        logits = head(hidden)
    return torch.log_softmax(logits.float(), -1)


def position_slices(length: int) -> list[slice]:
    """The positions that predict another of the same window, all but the last, cut into slices."""
    return [slice(at, min(at + POSITIONS, length - 1)) for at in range(0, length - 1, POSITIONS)]
