"""One router trained by itself, until its quantized block answers as the original's block does.

The loss is the squared error of the block's output, relative to what the original's block adds to its
input, plus a share of the divergence between the two models' routing: the error alone says nothing about
experts that were not chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alphaquant.config import RouterConfig
from alphaquant.linalg.divergence import divergence
from alphaquant.models.architecture import Scoring

ROUTING_SHARE = 1.0
_CHECKS_PER_EPOCH = 2


def routing_divergence(theirs: Tensor, ours: Tensor, scoring: Scoring) -> Tensor:
    """Mean KL divergence in nats of routing, from logits `[tokens, experts]` of the original and of ours.

    softmax makes one distribution over experts; by sigmoid each expert is chosen or not by itself, and the mean
    over experts counts. Biases of the choice and groups of experts are the same in both models.
    """
    if scoring == "softmax":
        log_p, log_q = torch.log_softmax(theirs, -1), torch.log_softmax(ours, -1)
        return divergence(log_p, log_q).mean()
    chance, log = torch.sigmoid(theirs), nn.functional.logsigmoid
    chosen = chance * (log(theirs) - log(ours))
    left_out = (1 - chance) * (log(-theirs) - log(-ours))
    return (chosen + left_out).mean()


@dataclass(frozen=True)
class RouterLesson:
    """What a router learns from; everything by batch of windows."""

    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Router `[experts, in]` and block inputs to the block's outputs and routing logits `[tokens, experts]`."""
    inputs: Sequence[Tensor]  # [windows, length, hidden] of the quantized model
    targets: Sequence[Tensor]  # [windows, length, hidden] of the original
    logits: Sequence[Tensor]  # [tokens, experts] of the original
    energy: float
    """Mean square of what the original's block adds to its input."""
    scoring: Scoring = "softmax"


def tune_router(
    weight: Tensor,  # [experts, in]
    lesson: RouterLesson,
    error: Callable[[Tensor], float],
    config: RouterConfig,
) -> Tensor:
    """The router `[experts, in]` in fp32 with the least held-out `error` on the way; the first one counts."""
    router = weight.float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([router], lr=config.learning_rate)
    batches = len(lesson.inputs)
    steps, every = config.epochs * batches, max(1, batches // _CHECKS_PER_EPOCH)
    order = torch.Generator().manual_seed(config.seed)
    sequence = [
        batch
        for _ in range(config.epochs)
        for batch in torch.randperm(batches, generator=order).tolist()
    ]
    best, least, stale = weight.float(), error(weight.float()), 0
    for step, batch in enumerate(sequence, start=1):
        optimizer.zero_grad()
        out, logits = lesson.run(router, lesson.inputs[batch])
        missed = (out.float() - lesson.targets[batch].to(out.device).float()).square().mean()
        theirs = lesson.logits[batch].to(out.device)
        routing = routing_divergence(theirs, logits.float(), lesson.scoring)
        (missed / lesson.energy + ROUTING_SHARE * routing).backward()
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - (step - 1) / steps)
        optimizer.step()
        if step % every and step != steps:
            continue
        now = error(router.detach())
        stale = 0 if now < least else stale + 1
        if now < least:
            best, least = router.detach().clone(), now
        if stale >= config.patience:
            break
    return best
