"""Held-out windows, and the baseline: what the original makes of them, block by block where it does not fit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from alphaquant.clock import note_work, timed
from alphaquant.evaluation.baseline import FILE
from alphaquant.evaluation.perplexity import window_losses
from alphaquant.evaluation.predictions import Predictions, WholeModel
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.scores import ORIGINAL
from alphaquant.evaluation.streamed import streamed_predictions
from alphaquant.floor import Tokens, predicted
from alphaquant.models.checkpoint import Checkpoint, check_vocabulary
from alphaquant.models.device import compute_dtype
from alphaquant.models.loading import load_whole
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import evaluation_windows


def window_length(original: Checkpoint, sequence_length: int) -> int:
    """Tokens per window: what was asked for, or the model's context where that is shorter."""
    return min(sequence_length, original.context_length)


def heldout_windows(
    original: Checkpoint, dataset: str, sequence_length: int, limit: int | None
) -> Tensor:
    """The held-out part of a text as int64 `[windows, length]`, at most `limit` of them.

    Raises DataError as `evaluation_windows` does, ModelError for a tokenizer of another model.
    """
    length = window_length(original, sequence_length)
    documents = load_documents(dataset, "evaluation")
    windows = evaluation_windows(original.tokenizer, documents, length, limit)
    check_vocabulary(original, windows)
    return windows


@timed("forward")
def write_baseline(original: Checkpoint, windows: Tensor, folder: Path, room: Room) -> None:
    """Put `windows`, the original's `hidden` states `[windows, length, hidden]` and its mean `loss` per window,
    float64 `[windows]`, into `hidden.safetensors`. A model for which there is no room is read block by block; raises
    ConfigError where that, too, does not fit.
    """
    kept = 2 * windows.numel() * original.config.hidden_size * compute_dtype(room.device).itemsize
    if room.holds(original, kept if room.device.type == "cpu" else 0):
        model = load_whole(original, room.device)
        whole = WholeModel(model, room.device, room.batch(original, windows.shape[1]))
        found = whole.predictions(windows, f"windows ({ORIGINAL})")
    else:
        found = streamed_predictions(original, windows, room, f"blocks ({ORIGINAL})")
    hidden = torch.stack([window.cpu() for window in found.hidden])
    found = Predictions(hidden, found.head)  # lets go of the windows one by one
    loss = window_losses(found, windows)
    seen = Tokens.of(original, windows.numel(), half=room.device.type == "cuda")
    note_work(lambda: predicted(original, seen))
    save_file({"windows": windows, "hidden": hidden, "loss": loss}, folder / FILE)
