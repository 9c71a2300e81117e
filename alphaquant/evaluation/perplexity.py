"""Perplexity: the exponential of the mean next-token loss over non-overlapping windows.

Protocol: windows come from `text.windows.evaluation_windows` (documents joined by an empty line,
one tokenisation, the tokenizer's own special tokens); each window is read on its own and its first
token is not scored; losses are natural-log, from an fp32 log-softmax; every scored token weighs
the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphaquant.progress import track


def next_token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of every next token, fp32 `[windows, length - 1]`, in nats.

    `logits` are `[windows, length, vocabulary]` and `tokens` `[windows, length]`.
    """
    scores = functional.log_softmax(logits[:, :-1].float(), dim=-1)
    return -scores.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits `[windows, length, vocabulary]` of a causal language model for `tokens` `[windows, length]`."""
    output: Any = model(input_ids=tokens, use_cache=False)
    logits: Tensor = output.logits
    return logits


@torch.inference_mode()
def window_losses(
    model: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    what: str = "perplexity",
) -> Tensor:
    """Mean next-token loss of each window, float64 `[windows]`, in nats; `what` names the progress."""
    model.eval()
    chunks = windows.split(batch_size)
    losses = []
    for chunk in track(chunks, what, len(chunks)):
        tokens = chunk.to(device)
        chunk_losses = next_token_losses(logits_of(model, tokens), tokens)
        losses.append(chunk_losses.double().mean(dim=1).cpu())
    return torch.cat(losses)


def perplexity(
    model: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    what: str = "perplexity",
) -> float:
    """Perplexity of `model` on `windows`, int64 `[windows, length]`; infinite when exp overflows."""
    losses = window_losses(model, windows, batch_size=batch_size, device=device, what=what)
    return float(torch.exp(losses.mean()))
