"""Router repair: only the routers of a quantized model train, towards the original's predictions.

Weights around them stay frozen. The loss is the KL divergence of next-token distributions (Router KD,
arXiv 2603.02217) or plain next-token cross-entropy; training stops early on held-out windows, and
routers that did not improve there are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.quantized_block import kept
from alphaquant.algorithms.router_models import Student, Teacher
from alphaquant.config import RouterConfig
from alphaquant.errors import DataError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter

_HELD_OUT = 8  # one window in so many is held out
_CHECKS_PER_EPOCH = 2
_WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class RouterResult:
    """Trained routers and what they changed, on held-out windows throughout."""

    tensors: dict[str, Tensor]
    """Router weights `[experts, hidden]` by linear name, in the checkpoint's dtype."""
    kl_before: float
    kl_after: float
    """Nats per token, original against quantized."""
    changed_before: list[float]
    changed_after: list[float]
    """Per MoE block, share of tokens whose set of experts differs from the original's."""
    blocks: list[int]
    history: list[dict[str, float]] = field(default_factory=list)
    """step, train_loss, heldout_kl."""


def trainable_routers(checkpoint: Checkpoint, plan: QuantPlan) -> list[LinearSpec]:
    """Routers over experts that the plan keeps unquantized."""
    return [
        spec
        for spec in plan.specs
        if spec.role == "router" and spec.rows > 1 and plan.schemes[spec.name].format == "bf16"
    ]


def train_routers(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Sequence[LinearSpec],
    tokens: Tensor,  # [windows, length]
    config: RouterConfig,
    *,
    device: torch.device,
) -> RouterResult:
    """Train `routers` of the model in `blocks` on `tokens`.

    Raises DataError for fewer than two windows: one to train on and one to hold out.
    """
    if tokens.shape[0] < 2:
        raise DataError(
            "router training needs at least 2 calibration windows; raise calibration.samples"
        )
    generator = torch.Generator().manual_seed(config.seed)
    shuffled = tokens[torch.randperm(tokens.shape[0], generator=generator)]
    held_count = max(1, shuffled.shape[0] // _HELD_OUT)
    train_batches = list(shuffled[held_count:].split(config.batch_size))
    held_batches = list(shuffled[:held_count].split(config.batch_size))
    train = list(range(len(train_batches)))
    held = range(len(train), len(train) + len(held_batches))
    teacher = Teacher(checkpoint, train_batches + held_batches, device, routers)
    student = Student(checkpoint, blocks, device, routers)

    kl_before, choices = student.held_out(teacher, held)
    changed_before = teacher.changed(choices)
    best_kl, best = kl_before, student.state()
    steps = config.epochs * len(train)
    every = max(1, len(train) // _CHECKS_PER_EPOCH)
    optimizer = torch.optim.AdamW(student.parameters, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(steps))
    history = [{"step": 0.0, "train_loss": math.nan, "heldout_kl": kl_before}]
    losses: list[float] = []
    stale = 0
    for step, batch in enumerate(_order(train, config.epochs, generator), start=1):
        optimizer.zero_grad()
        loss = student.loss(teacher, batch, config.method)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        reporter().update("router step", step, steps)
        if step % every and step != steps:
            continue
        kl, _ = student.held_out(teacher, held)
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
        spec.name: kept(best[spec.name].to(checkpoint.weight(spec.name).dtype)).cpu()
        for spec in routers
    }
    student.load({name: tensor.float() for name, tensor in stored.items()})
    kl_after, choices = student.held_out(teacher, held)
    if kl_after >= kl_before:  # rounding to the stored dtype may cost more than training brought
        kl_after, stored = kl_before, {s.name: kept(checkpoint.weight(s.name)) for s in routers}
        student.load({name: tensor.float() for name, tensor in stored.items()})
        _, choices = student.held_out(teacher, held)
    changed_after = teacher.changed(choices)
    numbers = [int(spec.block) for spec in routers if spec.block is not None]
    return RouterResult(
        stored, kl_before, kl_after, changed_before, changed_after, numbers, history
    )


def _order(train: list[int], epochs: int, generator: torch.Generator) -> Iterator[int]:
    for _ in range(epochs):
        for position in torch.randperm(len(train), generator=generator).tolist():
            yield train[position]


def _cosine(steps: int) -> Callable[[int], float]:
    warmup = max(1, round(_WARMUP * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
