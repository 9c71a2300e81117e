"""Routers trained end to end: all of them together, towards the original's predictions.

Weights around them stay frozen. The loss is the KL divergence of next-token distributions (Router KD,
arXiv 2603.02217) or plain next-token cross-entropy; training stops early on held-out windows, and
routers that did not improve there are not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.quantized_block import kept
from alphaquant.algorithms.router_models import Student, Teacher
from alphaquant.algorithms.router_windows import Windows
from alphaquant.algorithms.schedule import warm_cosine
from alphaquant.config import RouterConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.progress import reporter

_CHECKS_PER_EPOCH = 2


@dataclass(frozen=True)
class Training:
    """Trained routers and what they changed, on held-out windows throughout."""

    tensors: dict[str, Tensor]
    """Router weights `[experts, hidden]` by linear name, in the checkpoint's dtype."""
    kl_before: float
    kl_after: float
    """Nats per token, original against quantized."""
    changed_before: list[float]
    changed_after: list[float]
    """Per MoE block, share of tokens whose set of experts differs from the original's."""
    history: list[dict[str, float]] = field(default_factory=list)
    """step, train_loss, heldout_kl."""


def train_routers(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Sequence[LinearSpec],
    windows: Windows,
    config: RouterConfig,
    loss: str,
    start: Mapping[str, Tensor],
    *,
    device: torch.device,
) -> Training:
    """Train `routers` of the model in `blocks` from the weights in `start`, by `loss` kl or ce."""
    teacher = Teacher(checkpoint, windows, device, routers)
    student = Student(checkpoint, blocks, device, routers)
    student.load(start)
    kl_before, changed_before = student.held_out(teacher)
    best_kl, best = kl_before, student.state()
    batches = len(windows.train)
    steps = config.epochs * batches
    every = max(1, batches // _CHECKS_PER_EPOCH)
    optimizer = torch.optim.AdamW(student.parameters, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    history = [{"step": 0.0, "train_loss": math.nan, "heldout_kl": kl_before}]
    losses: list[float] = []
    stale = 0
    for step, batch in enumerate(_order(batches, config), start=1):
        optimizer.zero_grad()
        value = student.loss(teacher, batch, loss)
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
        reporter().update("router step", step, steps)
        if step % every and step != steps:
            continue
        kl, _ = student.held_out(teacher)
        history.append(
            {"step": float(step), "train_loss": sum(losses) / len(losses), "heldout_kl": kl}
        )
        losses.clear()
        stale = 0 if kl < best_kl else stale + 1
        if kl < best_kl:
            best_kl, best = kl, student.state()
        if stale >= config.patience:
            reporter().note(f"router: stopped early at step {step} of {steps}")
            break
    stored = {
        spec.name: kept(best[spec.name].to(checkpoint.dtype(f"{spec.name}.weight"))).cpu()
        for spec in routers
    }
    student.load(stored)
    kl_after, changed_after = student.held_out(teacher)
    if kl_after >= kl_before:  # rounding to the stored dtype may cost more than training brought
        stored, kl_after, changed_after = dict(start), kl_before, changed_before
    return Training(stored, kl_before, kl_after, changed_before, changed_after, history)


def _order(batches: int, config: RouterConfig) -> Iterator[int]:
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        yield from torch.randperm(batches, generator=generator).tolist()
