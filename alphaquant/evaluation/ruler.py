"""The ruler: a model whose weights are exchanged, measured against the original's predictions.

Window by window, so that two plans can be compared on the same windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from alphaquant.algorithms.quantized_block import block_weights, blocks_of, quantized_head
from alphaquant.clock import timed
from alphaquant.evaluation.fidelity import compare_tokens
from alphaquant.evaluation.predictions import Predictions, WholeModel
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.streamed import streamed_predictions
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import HEAD
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_whole


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
    """Measures whatever weights are put into it, the whole model in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Tensor,  # [windows, length]
        room: Room,
        original: Predictions | None = None,
    ) -> None:
        """`original` is what it predicts on `windows`, to be iterated as often as is measured; without it the
        checkpoint's unchanged weights are what others are measured against.
        """
        self._checkpoint, self._windows = checkpoint, windows
        model = load_whole(checkpoint, room.device)
        size = room.batch(checkpoint, windows.shape[1])
        self._model = WholeModel(model, room.device, size)
        if original is None:
            unchanged = self._model.predictions(windows)
            original = Predictions([window.cpu() for window in unchanged.hidden], unchanged.head)
        self._original = original
        self._put_head = False
        self._live = LiveCheckpoint(model, checkpoint.architecture.kind)

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
    def measure(self) -> WindowScores:
        """Compare the model as it is now with the original."""
        found = self._model.predictions(self._windows)
        return _window_scores(self._original, found, self._windows)


class BlockRuler:
    """Measures a quantized model's folders, one block in memory at a time."""

    def __init__(
        self, checkpoint: Checkpoint, windows: Tensor, room: Room, original: Predictions
    ) -> None:
        """As `Ruler`."""
        self._checkpoint, self._windows = checkpoint, windows
        self._room, self._original = room, original
        self._folders: Sequence[Path] = ()

    def put_blocks(self, folders: Sequence[Path]) -> None:
        """Read these from now on, in place of the original's linears and norms."""
        self._folders = folders

    @timed("scores")
    def measure(self) -> WindowScores:
        """Compare the model as it is now with the original."""
        checkpoint, folders = self._checkpoint, blocks_of(self._checkpoint, self._folders)

        def weights(index: int) -> Mapping[str, Tensor]:
            return block_weights(checkpoint, index, folders[index]) if folders else {}

        found = streamed_predictions(
            checkpoint,
            self._windows,
            self._room,
            "blocks measured",
            weights=weights,
            head=quantized_head(checkpoint, self._folders),
        )
        return _window_scores(self._original, found, self._windows)


def ruler_for(
    checkpoint: Checkpoint, windows: Tensor, room: Room, original: Predictions, beside: int = 0
) -> Ruler | BlockRuler:
    """The ruler that there is room for, with so many bytes `beside` it for whoever makes what it measures."""
    kind = Ruler if room.holds(checkpoint, beside) else BlockRuler
    return kind(checkpoint, windows, room, original)


def _window_scores(original: Predictions, found: Predictions, windows: Tensor) -> WindowScores:
    tokens = compare_tokens(original, found, windows)
    parts = (tokens.kl, tokens.loss_quantized, tokens.loss_original, tokens.agrees)
    return WindowScores(*(part.double().mean(dim=1) for part in parts))
