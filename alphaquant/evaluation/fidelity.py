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
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.errors import ModelError
from alphaquant.evaluation.bootstrap import (
    bootstrap_score,
    resample_weights,
    weighted_mean,
    weighted_quantile,
)
from alphaquant.evaluation.perplexity import next_token_losses
from alphaquant.evaluation.predictions import Predictions, log_probabilities, position_slices
from alphaquant.evaluation.scores import HELDOUT, ORIGINAL, QUANTIZED, Score
from alphaquant.linalg.divergence import divergence

TAIL = 0.999


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """What two models said at every scored position, each `[windows, length - 1]` on the CPU."""

    kl: Tensor
    loss_original: Tensor
    loss_quantized: Tensor
    agrees: Tensor
    flips: Tensor


@timed("forward")
def compare(
    original: Predictions,
    quantized: Predictions,
    windows: Tensor,
    *,
    task: str = HELDOUT,
    label: str = QUANTIZED,
) -> list[Score]:
    """Perplexity of both, mean and 99.9th-percentile KL, top-1 agreement and flips, with intervals.

    `windows` is int64 `[windows, length]`, what both predict. `label` names the compared model in the rows. Raises
    ModelError when the vocabularies differ.
    """
    return fidelity_scores(compare_tokens(original, quantized, windows), task=task, label=label)


@torch.inference_mode()
def compare_tokens(
    original: Predictions, quantized: Predictions, windows: Tensor
) -> TokenComparison:
    """What both say of `windows` `[windows, length]`, holding the logits of one slice of positions of each."""
    parts: list[list[Tensor]] = []
    for tokens, first, second in zip(windows, original.hidden, quantized.hidden, strict=True):
        slices = [
            _compare_slice(
                log_probabilities(original.head, first[at]),
                log_probabilities(quantized.head, second[at]),
                tokens[1:][at],
            )
            for at in position_slices(len(tokens))
        ]
        parts.append([torch.cat(column).cpu() for column in zip(*slices, strict=True)])
    return TokenComparison(*(torch.stack(column) for column in zip(*parts, strict=True)))


def _compare_slice(log_p: Tensor, log_q: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    if log_p.shape != log_q.shape:
        raise ModelError(
            f"the models cannot be compared: their vocabularies have {log_p.shape[-1]} and "
            f"{log_q.shape[-1]} tokens; compare checkpoints of the same original"
        )
    true = targets.to(log_p.device)
    top_p, top_q = log_p.argmax(dim=-1), log_q.argmax(dim=-1)
    return (
        divergence(log_p, log_q).clamp_min(0),
        next_token_losses(log_p, true),
        next_token_losses(log_q, true),
        top_p == top_q,
        (top_p == true) != (top_q == true),
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
