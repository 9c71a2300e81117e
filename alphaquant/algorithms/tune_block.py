"""Block-wise tuning: move codes and scales until the quantized block answers as the original does.

GPTQ makes each linear's output right on its own; here a gradient sees the whole block, so that linears
make up for each other and for what the blocks before them broke. The target is the original block's
output on the original's inputs, the input is what the quantized blocks hand on. AutoRound (Cheng et al.,
arXiv 2309.05516) tunes so from round-to-nearest; this starts from GPTQ's solution and keeps it unless
windows that were held out say that tuning helped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.algorithms.tuned_rounding import TunedRounding
from alphaquant.config import QuantizationConfig
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.progress import reporter

_HELD_OUT = 8  # one window in so many is held out
_CHECKS = 4  # times that the held-out windows are looked at
_BETAS = (0.9, 0.95)  # short runs: gradients of the first steps are soon forgotten

RunBlock = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Weights by linear and inputs `[windows, length, hidden]` to the block's outputs."""


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


def tune_block(
    run: RunBlock,
    starts: Sequence[Start],
    inputs: Tensor,  # [windows, length, hidden]
    targets: Tensor,  # [windows, length, hidden]
    config: QuantizationConfig,
    device: torch.device,
) -> tuple[list[QuantizedWeight], Tuning]:
    """Tune every stack of a block together; returns their codes and scales, and what it brought.

    Windows come in the same order every time; inputs and targets may lie on another device.
    """
    roundings = [TunedRounding(start.quantized, start.compensated) for start in starts]
    windows = inputs.shape[0]
    held = range(windows - max(1, windows // _HELD_OUT), windows) if windows > 1 else range(1)
    train = held.start or windows
    size = min(config.tune_batch_size, train)

    def loss(weights: Mapping[str, Tensor], chosen: Tensor | Sequence[int]) -> Tensor:
        out = run(weights, inputs[chosen].to(device))
        return (out.float() - targets[chosen].to(device).float()).square().mean()

    def error(kept: Sequence[QuantizedWeight]) -> float:
        weights = dict(_named(starts, [weight.dequantize() for weight in kept]))
        with torch.no_grad():
            parts = [held[at : at + size] for at in range(0, len(held), size)]
            return sum(float(loss(weights, list(p))) * len(p) for p in parts) / len(held)

    optimizer = torch.optim.Adam(_groups(roundings, config), betas=_BETAS)
    rates = [group["lr"] for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(0)
    best = [start.quantized for start in starts]
    before = least = error(best)
    kept_at = 0
    for step in range(config.tune_steps):
        chosen = torch.randperm(train, generator=order)[:size]
        weights = dict(_named(starts, [rounding.weight() for rounding in roundings]))
        optimizer.zero_grad()
        loss(weights, chosen).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / config.tune_steps)
        optimizer.step()
        for rounding in roundings:
            rounding.confine()
        if (step + 1) * _CHECKS % config.tune_steps < _CHECKS:
            found = [rounding.quantized() for rounding in roundings]
            now = error(found)
            if now < least:
                best, least, kept_at = found, now, step + 1
    change = float((targets[held.start :].float() - inputs[held.start :].float()).square().mean())
    tuning = Tuning(before / max(change, 1e-30), least / max(change, 1e-30), kept_at)
    reporter().note(
        f"tuned {sum(r.size for r in roundings):,} weights: held-out block error "
        f"{tuning.before:.3g} to {tuning.after:.3g}"
    )
    return best, tuning


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
