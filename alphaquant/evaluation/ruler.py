"""The ruler: one model in memory whose weights are exchanged, measured against the original's hidden states.

Window by window, so that two plans can be compared on the same windows. Hidden states are kept instead
of logits: they are exact, and smaller by vocabulary over hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaquant.algorithms.quantized_block import block_weights, blocks_of, quantized_head
from alphaquant.clock import timed
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.head import Head
from alphaquant.models.linear import HEAD
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_model


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Means over the tokens of each window that are predicted from others of it, float64 `[windows]`."""

    kl: Tensor
    """KL divergence to the original, nats per token."""
    loss: Tensor
    """Next-token loss, nats per token."""
    loss_original: Tensor
    """The same of the original."""
    agrees: Tensor
    """Share of tokens for which both rank the same one first."""


class Ruler:
    """Measures whatever weights are put into it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Tensor,  # [windows, length]
        device: torch.device,
        batch_size: int,
        *,
        original: Checkpoint | None = None,
        hidden: Tensor | None = None,  # [windows, length, hidden]
    ) -> None:
        """`original` is given when `checkpoint` is its rotated form, whose hidden states have another basis.

        `hidden` is what `hidden_states` of the unchanged original gave; computed anew without it.
        """
        self._checkpoint, self._device = checkpoint, device
        self._batches = windows.split(batch_size)
        self._model = _loaded(original or checkpoint, device)
        self._head = Head(self._model)
        self._original = (self.hidden_states() if hidden is None else hidden).split(batch_size)
        if original is not None:
            self._model = _loaded(checkpoint, device)
        self._put_head = False
        self._live = LiveCheckpoint(self._model, checkpoint.architecture.kind)

    @timed("scores")
    def hidden_states(self) -> Tensor:
        """Last hidden states on the windows with the weights as they are now, on the CPU."""
        return torch.cat([self._hidden(batch).cpu() for batch in self._batches])

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite linears by name."""
        for name, weight in weights.items():
            self._live.replace(name, weight)

    def put_blocks(self, folders: Sequence[Path]) -> None:
        """Overwrite every linear and norm with what a quantized model's folders hold, or with the original."""
        head = quantized_head(self._checkpoint, folders)
        if head is not None or self._put_head:
            self.put({HEAD: self._checkpoint.head_weight() if head is None else head})
            self._put_head = head is not None
        for index, folder in enumerate(blocks_of(self._checkpoint, folders)):
            norms = self._checkpoint.block_norms(index)
            self.put({name: self._checkpoint.weight(name) for name in norms})
            self.put(block_weights(self._checkpoint, index, folder))

    @timed("scores")
    @torch.inference_mode()
    def measure(self) -> WindowScores:
        """Compare the model as it is now with the original."""
        found: list[tuple[Tensor, ...]] = []
        head = Head(self._model)
        for batch, originals in zip(self._batches, self._original, strict=True):
            hidden = self._hidden(batch)
            for tokens, first, second in zip(batch, originals, hidden, strict=True):
                # one window's logits at a time
                log_p = torch.log_softmax(self._head(first[:-1].to(self._device)).float(), -1)
                log_q = torch.log_softmax(head(second[:-1]).float(), -1)
                targets = tokens[1:, None].to(self._device)
                means = (
                    (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
                    -log_q.gather(-1, targets).mean(),
                    -log_p.gather(-1, targets).mean(),
                    (log_p.argmax(-1) == log_q.argmax(-1)).float().mean(),
                )
                found.append(means)
        parts = (torch.stack(part).double().cpu() for part in zip(*found, strict=True))
        return WindowScores(*parts)

    @torch.no_grad()
    def _hidden(self, batch: Tensor) -> Tensor:
        output = self._model.model(batch.to(self._device), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


def _loaded(checkpoint: Checkpoint, device: torch.device) -> Any:
    return load_model(checkpoint.path, device, checkpoint.trust_remote_code)
