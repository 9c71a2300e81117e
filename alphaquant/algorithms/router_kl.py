"""Losses on next-token predictions that hold the logits of one window at a time.

The KL divergence that is trained on sees the original's likeliest tokens, and all others as one. Summing
tokens up never raises a KL divergence, so it is a lower bound of the full one, which `kl_divergence` is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from alphaquant.linalg.divergence import divergence

TOP = 64
"""Tokens whose probabilities are kept for training: 8 bytes each, 134 MB for 128 windows of 2048 tokens."""


@dataclass(frozen=True)
class TopPrediction:
    """The original's next-token distributions: its likeliest tokens, and the rest as one."""

    log_p: Tensor  # [windows, length, top]
    index: Tensor  # [windows, length, top] int32, of the vocabulary
    log_rest: Tensor  # [windows, length]


def top_prediction(head: nn.Module, hidden: Tensor, count: int = TOP) -> TopPrediction:
    """Distributions behind last hidden states `[windows, length, hidden]`, kept on the CPU."""
    parts: list[tuple[Tensor, ...]] = []
    for window in hidden:
        with torch.no_grad():
            logits = head(window).float()
            index = logits.topk(min(count, logits.shape[-1] - 1), sorted=False).indices
            log_p, log_rest = _grouped(logits, index)
        parts.append((log_p.cpu(), index.int().cpu(), log_rest.cpu()))
    return TopPrediction(*(torch.stack(part) for part in zip(*parts, strict=True)))


def top_kl(head: nn.Module, original: TopPrediction, hidden: Tensor) -> Tensor:
    """KL(original || ours) in nats per token, over the grouped tokens; gradients reach `hidden`."""

    def of(window: Tensor, number: int) -> Tensor:
        index = original.index[number].to(window.device).long()
        log_p = original.log_p[number].to(window.device)
        log_rest = original.log_rest[number].to(window.device)
        ours, our_rest = _grouped(head(window).float(), index)
        kl = divergence(log_p, ours) + divergence(log_rest[..., None], our_rest[..., None])
        return kl.mean()

    return _mean_over_windows(of, hidden)


def cross_entropy(head: nn.Module, tokens: Tensor, hidden: Tensor) -> Tensor:
    """Mean loss in nats of the text's next tokens `[windows, length]`."""

    def of(window: Tensor, number: int) -> Tensor:
        targets = tokens[number, 1:].to(window.device)
        return nn.functional.cross_entropy(head(window[:-1]).float(), targets)

    return _mean_over_windows(of, hidden)


def kl_divergence(
    head: nn.Module, original: Tensor, ours: Tensor, our_head: nn.Module | None = None
) -> Tensor:
    """Full KL(original || ours) of two models' last hidden states `[windows, length, hidden]`, per token.

    `our_head` is given where it is not the original's.
    """
    kept: list[Tensor] = []
    for theirs, mine in zip(original, ours, strict=True):
        with torch.no_grad():
            log_p = torch.log_softmax(head(theirs.to(mine.device)).float(), -1)
            log_q = torch.log_softmax((our_head or head)(mine).float(), -1)
            kept.append(divergence(log_p, log_q).cpu())
    return torch.stack(kept)


def full_kl(
    head: nn.Module, original: Tensor, ours: Tensor, our_head: nn.Module | None = None
) -> Tensor:
    """Mean of `kl_divergence`; gradients reach `ours`."""

    def of(window: Tensor, number: int) -> Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(head(original[number].to(window.device)).float(), -1)
        log_q = torch.log_softmax((our_head or head)(window).float(), -1)
        return divergence(log_p, log_q).mean()

    return _mean_over_windows(of, ours)


def _grouped(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[..., top]` of some tokens, and `[...]` of all others together.

    The rest is summed itself: one minus the others would lose it in rounding.
    """
    chosen = logits.gather(-1, index)
    rest = logits.scatter(-1, index, -torch.inf).logsumexp(-1)
    whole = torch.logaddexp(chosen.logsumexp(-1), rest)
    return chosen - whole[..., None], rest - whole


def _mean_over_windows(loss: Callable[[Tensor, int], Tensor], hidden: Tensor) -> Tensor:
    """Mean of a loss per window; logits are computed again when gradients are asked for."""
    losses = [
        recompute(loss, window, number, use_reentrant=False) for number, window in enumerate(hidden)
    ]
    return torch.stack(losses).mean()
