"""Fidelity: how closely a quantized model follows the original, token by token, in one pass.

For every scored position (all but the first token of a window) of the same windows:

    KL              KL(p_original || p_quantized) of the next-token distributions, in nats
    top-1 agreement both models rank the same token first
    flip            exactly one of the two ranks the true next token first, so that an answer went
                    from right to wrong or back (Dutta et al., "Accuracy is not all you need", 2024)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphaquant.clock import timed
from alphaquant.errors import ModelError
from alphaquant.evaluation.bootstrap import (
    bootstrap_score,
    resample_weights,
    weighted_mean,
    weighted_quantile,
)
from alphaquant.evaluation.perplexity import logits_of
from alphaquant.evaluation.scores import HELDOUT, ORIGINAL, QUANTIZED, Score
from alphaquant.progress import track

TAIL = 0.999
POSITIONS = 256
"""Positions whose fp32 distributions exist at one time, per window."""


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """What two models said at every scored position, each `[windows, length - 1]` on the CPU."""

    kl: Tensor
    loss_original: Tensor
    loss_quantized: Tensor
    agrees: Tensor
    flips: Tensor


def compare(
    original: nn.Module,
    quantized: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    task: str = HELDOUT,
    label: str = QUANTIZED,
    what: str = "fidelity",
) -> list[Score]:
    """Perplexity of both, mean and 99.9th-percentile KL, top-1 agreement and flips, with intervals.

    `windows` is int64 `[windows, length]`; both models are on `device`. `label` names the compared
    model in the rows. Raises ModelError when the vocabularies differ.
    """
    tokens = compare_tokens(
        original, quantized, windows, batch_size=batch_size, device=device, what=what
    )
    return fidelity_scores(tokens, task=task, label=label)


@timed("forward")
@torch.inference_mode()
def compare_tokens(
    original: nn.Module,
    quantized: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    what: str = "fidelity",
) -> TokenComparison:
    """Run both models over `windows`, holding one batch of logits of each at a time."""
    original.eval()
    quantized.eval()
    chunks = windows.split(batch_size)
    parts: list[list[Tensor]] = []
    for chunk in track(chunks, what, len(chunks)):
        tokens = chunk.to(device)
        first, second = logits_of(original, tokens), logits_of(quantized, tokens)
        if first.shape != second.shape:
            raise ModelError(
                f"the models cannot be compared: their vocabularies have {first.shape[-1]} and "
                f"{second.shape[-1]} tokens; compare checkpoints of the same original"
            )
        slices = [
            _compare_slice(first[:, at:end], second[:, at:end], tokens[:, at + 1 : end + 1])
            for at in range(0, tokens.shape[1] - 1, POSITIONS)
            for end in [min(at + POSITIONS, tokens.shape[1] - 1)]
        ]
        parts.append([torch.cat(column, dim=1).cpu() for column in zip(*slices, strict=True)])
    return TokenComparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare_slice(first: Tensor, second: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    log_p = functional.log_softmax(first.float(), dim=-1)
    log_q = functional.log_softmax(second.float(), dim=-1)
    p = log_p.exp()
    # A token that the original rules out (-inf logit) adds nothing, whatever the other says.
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1).clamp_min(0)
    top_p, top_q = log_p.argmax(dim=-1), log_q.argmax(dim=-1)
    true = targets.unsqueeze(-1)
    return (
        kl,
        -log_p.gather(-1, true).squeeze(-1),
        -log_q.gather(-1, true).squeeze(-1),
        top_p == top_q,
        (top_p == targets) != (top_q == targets),
    )


@timed("intervals")
def fidelity_scores(
    tokens: TokenComparison, *, task: str = HELDOUT, label: str = QUANTIZED
) -> list[Score]:
    """The rows of `scores.parquet` that a comparison gives; intervals resample whole windows."""
    weights = resample_weights(tokens.kl.shape[0])
    original, quantized, kl, agrees, flips = (
        part.double().mean(dim=1)
        for part in (
            tokens.loss_original,
            tokens.loss_quantized,
            tokens.kl,
            tokens.agrees,
            tokens.flips,
        )
    )
    loss, other = weighted_mean(original), weighted_mean(quantized)
    change = weighted_mean(quantized - original)
    rows = (
        ("perplexity", ORIGINAL, lambda w: loss(w).exp()),
        ("perplexity", label, lambda w: other(w).exp()),
        ("perplexity_ratio", label, lambda w: change(w).exp()),
        ("kl_mean", label, weighted_mean(kl)),
        ("kl_p999", label, weighted_quantile(tokens.kl, TAIL)),
        ("top1_agreement", label, weighted_mean(agrees)),
        ("flips", label, weighted_mean(flips)),
    )
    return [
        bootstrap_score(statistic, weights, task=task, metric=metric, model=model)
        for metric, model, statistic in rows
    ]
