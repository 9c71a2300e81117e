"""End-to-end tuning: scales and norms of the quantized model move until it predicts as the original does.

Blocks that were tuned one by one leave errors that later blocks could make up for, and only the model's output
tells which of them matter. Codes stay: with as many parameters as weights, the same steps learn the calibration
text by heart. Scales and norms are few, and are kept only if windows that were held out come out closer to the
original. EfficientQAT (arXiv 2407.11062) ends so too, on the text's next tokens instead of the original's
predictions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.algorithms.schedule import warm_cosine
from alphaquant.algorithms.tunable_model import TunableModel
from alphaquant.algorithms.tuning_memory import needs_behind, windows_that_fit
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.errors import DataError
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import all_cores, compute_dtype
from alphaquant.models.streamed import last_hidden
from alphaquant.progress import reporter
from alphaquant.text.windows import held_out

_CHECKS = 5  # times that the held-out windows are looked at
_PATIENCE = 2  # checks in a row, each worse than the one before, that end it
_BETAS = (0.9, 0.95)
_NORM_RATE = 0.25  # of the rate of scales: a norm concerns all weights behind it at once


@dataclass(frozen=True)
class ModelTuning:
    """What end-to-end tuning brought, on held-out windows."""

    kl_before: float
    """Nats per token, original against quantized, as block-wise tuning left it."""
    kl_after: float
    steps: int
    """Steps behind the scales and norms that were kept; 0 where nothing better was found."""
    history: list[dict[str, float | None]] = field(default_factory=list)
    """step, train_kl, heldout_kl."""


@all_cores()
@timed("tuning")
def tune_model(
    checkpoint: Checkpoint,
    folders: Sequence[Path],
    tokens: Tensor,  # [windows, length]
    config: QuantizationConfig,
    *,
    device: torch.device,
    batch_size: int,
    memory_limit: int | None = None,
) -> tuple[TunableModel, ModelTuning]:
    """Tune the scales and norms of the model in `folders`; returns it at its best, and what that brought.

    `batch_size` windows at most are computed at once, fewer where a `memory_limit` in bytes asks for it. Raises
    DataError for fewer than two windows: one to train on and one to hold out. Raises ConfigError for a model that does
    not fit into memory.
    """
    if tokens.shape[0] < 2:
        raise DataError(
            "end-to-end tuning needs at least 2 calibration windows; raise calibration.samples"
        )
    generator = torch.Generator().manual_seed(0)
    # what blocks were tuned on cannot tell whether more of it helps
    first = held_out(tokens.shape[0]).start
    size = min(config.tune_batch_size, batch_size)
    needs = needs_behind(checkpoint, folders, (tokens.shape[0], tokens.shape[1]), device)
    finished = " The blocks are finished and kept."
    size = windows_that_fit(needs, device, size, memory_limit, finished)
    batches = [batch.split(size) for batch in tokens[:first].split(config.tune_batch_size)]
    batches.append(tokens[first:].split(size))
    original = BlockModel(checkpoint, device, compute_dtype(device))
    teacher = iter(last_hidden(original, [*itertools.chain(*batches)]))
    del original
    *train, held = [[(part, next(teacher)) for part in parts] for parts in batches]
    student = TunableModel(checkpoint, folders, device)

    def heldout_kl() -> float:
        with torch.no_grad():
            return sum(float(loss) for loss in _shares(student, held))

    factors, changes = student.parameters()
    rate = config.tune_model_rate
    groups = [{"params": factors, "lr": rate}, {"params": changes, "lr": _NORM_RATE * rate}]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=_BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(config.tune_model_steps))
    steps, every = config.tune_model_steps, max(1, config.tune_model_steps // _CHECKS)
    before = least = heldout_kl()
    best, kept_at, rises = student.state(), 0, 0
    history: list[dict[str, float | None]] = [{"step": 0.0, "train_kl": None, "heldout_kl": before}]
    losses: list[float] = []
    order = _forever(len(train), generator)
    reporter().update("tuning step", 0, steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        losses.append(0.0)
        for loss in _shares(student, train[next(order)]):
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        schedule.step()
        reporter().update("tuning step", step, steps)
        if step % every and step != steps:
            continue
        now = heldout_kl()
        history.append(
            {"step": float(step), "train_kl": sum(losses) / len(losses), "heldout_kl": now}
        )
        losses.clear()
        rises = rises + 1 if now > float(history[-2]["heldout_kl"] or 0) else 0
        if now < least:
            best, least, kept_at = student.state(), now, step
        if rises >= _PATIENCE:
            break
    student.load(best)
    return student, ModelTuning(before, least, kept_at, history)


def _shares(student: TunableModel, parts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The loss of a batch part by part, each with its share of the mean."""
    windows = sum(len(tokens) for tokens, _ in parts)
    for tokens, original in parts:
        yield student.loss(tokens, original) * (len(tokens) / windows)


def _forever(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
