"""The baseline: held-out windows and what the original makes of them, computed once for every plan that is measured.

Last hidden states are kept, which with the original's head give its predictions exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from alphaquant.evaluation.predictions import Predictions
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype

FILE = "hidden.safetensors"


class Baseline:
    """A baseline on disk. Hidden states are read a window at a time, each time they are iterated."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    @property
    def windows(self) -> Tensor:
        """int64 `[windows, length]`."""
        return self._tensor("windows")

    @property
    def loss(self) -> Tensor:
        """The original's mean next-token loss of each window, float64 `[windows]`, in nats."""
        return self._tensor("loss")

    def __iter__(self) -> Iterator[Tensor]:
        """The original's last hidden states, per window `[length, hidden]`."""
        with safe_open(self._file, framework="pt") as file:
            hidden = file.get_slice("hidden")
            for window in range(hidden.get_shape()[0]):
                yield hidden[window]

    def predictions(self, original: Checkpoint, device: torch.device) -> Predictions:
        """What the original predicts, with its head on `device` and nothing else of it."""
        return Predictions(self, BlockModel(original, device, compute_dtype(device)).head())

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self._file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
