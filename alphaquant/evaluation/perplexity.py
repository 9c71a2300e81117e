"""Perplexity: the exponential of the mean next-token loss over non-overlapping windows.

Protocol: windows come from `text.windows.evaluation_windows` (documents joined by an empty line,
one tokenisation, the tokenizer's own special tokens); each window is read on its own and its first
token is not scored; losses are natural-log, from an fp32 log-softmax; every scored token weighs
the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alphaquant.evaluation.predictions import (
    Predictions,
    WholeModel,
    log_probabilities,
    position_slices,
)


@torch.inference_mode()
def window_losses(predictions: Predictions, windows: Tensor) -> Tensor:
    """Mean next-token loss of each of `windows` `[windows, length]`, float64 `[windows]`, in nats."""
    losses = []
    for tokens, hidden in zip(windows, predictions.hidden, strict=True):
        parts = [
            next_token_losses(log_probabilities(predictions.head, hidden[at]), tokens[1:][at])
            for at in position_slices(len(tokens))
        ]
        losses.append(torch.cat(parts).double().mean().cpu())
    return torch.stack(losses)


def next_token_losses(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log p of the true tokens `[positions]`, from log-probabilities `[positions, vocabulary]`."""
    return -log_p.gather(-1, targets.to(log_p.device).unsqueeze(-1)).squeeze(-1)


def perplexity(
    model: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    what: str = "perplexity",
) -> float:
    """Perplexity of `model` on `windows`, int64 `[windows, length]`; infinite when exp overflows.

    `what` names the progress.
    """
    predictions = WholeModel(model, device, batch_size).predictions(windows, what)
    return float(torch.exp(window_losses(predictions, windows).mean()))
