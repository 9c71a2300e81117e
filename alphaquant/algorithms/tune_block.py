"""Block-wise tuning: move codes and scales until the quantized block answers as the original does.

GPTQ makes each linear's output right on its own; here a gradient sees the whole block, so that linears
make up for each other and for what the blocks before them broke. The target is the original block's
output on the original's inputs, the input is what the quantized blocks hand on. AutoRound (Cheng et al.,
arXiv 2309.05516) tunes so from round-to-nearest; this starts from GPTQ's solution and keeps it unless
windows that were held out say that tuning helped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.algorithms.lesson import Lesson
from alphaquant.algorithms.tuned_rounding import TunedRounding
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.device import all_cores
from alphaquant.progress import reporter
from alphaquant.text.windows import held_out

_CHECKS = 4  # times that the held-out windows are looked at
_BETAS = (0.9, 0.95)  # short runs: gradients of the first steps are soon forgotten


@dataclass(frozen=True)
class Tuning:
    """What tuning brought on held-out windows."""

    before: float
    """Squared error of the block's output, relative to what the block adds to its input, as GPTQ left it."""
    after: float
    steps: int
    """Steps behind the codes that were kept; 0 where GPTQ's stayed."""


@dataclass(frozen=True)
class Start:
    """Where the tuning of a stack begins."""

    names: Sequence[str]
    quantized: QuantizedWeight
    compensated: Tensor
    """What was rounded to the codes `[n, out, in]`."""


@all_cores()
@timed("tuning")
def tune_block(
    lesson: Lesson, starts: Sequence[Start], config: QuantizationConfig
) -> tuple[list[QuantizedWeight], Tuning]:
    """Tune every stack of a block together; returns their codes and scales, and what it brought."""
    roundings = [TunedRounding(start.quantized, start.compensated) for start in starts]
    windows = lesson.inputs.shape[0]
    held = held_out(windows)
    train = held.start or windows
    size = min(config.tune_batch_size, train)

    def mean_held_out(measure: Callable[..., Tensor], kept: Sequence[QuantizedWeight]) -> float:
        weights = dict(_named(starts, [weight.dequantize() for weight in kept]))
        with torch.no_grad():
            return sum(
                float(measure(weights, part)) * len(part) / len(held)
                for part in _parts(held, lesson.batch_size)
            )

    optimizer = torch.optim.Adam(_groups(roundings, config), betas=_BETAS)
    rates = [group["lr"] for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(0)
    first = best = [start.quantized for start in starts]
    least = mean_held_out(lesson.loss, best)
    kept_at = 0
    reporter().update("tuning step", 0, config.tune_steps)
    for step in range(config.tune_steps):
        chosen = torch.randperm(train, generator=order)[:size].tolist()
        optimizer.zero_grad()
        for part in _parts(chosen, lesson.batch_size):
            # made anew for each part: a backward pass frees what the values were made of
            weights = dict(_named(starts, [rounding.weight() for rounding in roundings]))
            (lesson.loss(weights, part) * (len(part) / size)).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / config.tune_steps))
        optimizer.step()
        for rounding in roundings:
            rounding.confine()
        reporter().update("tuning step", step + 1, config.tune_steps)
        if (step + 1) * _CHECKS % config.tune_steps < _CHECKS:
            found = [rounding.quantized() for rounding in roundings]
            now = mean_held_out(lesson.loss, found)
            if now < least:
                best, least, kept_at = found, now, step + 1
    added = float(
        (lesson.targets[held.start :].float() - lesson.inputs[held.start :].float()).square().mean()
    )
    before, after = (
        mean_held_out(lesson.error, kept) / max(added, 1e-30) for kept in (first, best)
    )
    reporter().note(
        f"tuned {sum(r.size for r in roundings):,} weights: held-out block error {before:.3g} to {after:.3g}"
    )
    return best, Tuning(before, after, kept_at)


def _parts(chosen: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(chosen), size):
        yield list(chosen[start : start + size])


def _named(starts: Sequence[Start], weights: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    for start, stack in zip(starts, weights, strict=True):
        yield from zip(start.names, stack, strict=True)


def _groups(
    roundings: Sequence[TunedRounding], config: QuantizationConfig
) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = [
        {"params": [rounding.latent for rounding in roundings], "lr": config.tune_rate}
    ]
    if factors := [rounding.factor for rounding in roundings if rounding.factor is not None]:
        groups.append({"params": factors, "lr": config.tune_scale_rate})
    return groups
