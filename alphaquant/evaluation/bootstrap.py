"""The bootstrap: how much a number would move if other windows of the same text had been drawn.

Resampling is over whole windows (or documents), because tokens within one depend on each other.
The same resamples serve every number of a comparison, which makes the intervals paired: what two
models share, such as hard windows, cancels in their difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alphaquant.evaluation.scores import QUANTIZED, Score

RESAMPLES = 2000
SEED = 0
LOW, HIGH = 0.025, 0.975


def resample_weights(units: int, resamples: int = RESAMPLES, seed: int = SEED) -> Tensor:
    """How often each unit is drawn in each resample, float64 `[resamples, units]`, rows sum to `units`."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(units, (resamples, units), generator=generator)
    weights = torch.zeros(resamples, units, dtype=torch.float64)
    return weights.scatter_add_(1, draws, torch.ones(draws.shape, dtype=torch.float64))


def bootstrap_score(
    statistic: Callable[[Tensor], Tensor],
    weights: Tensor,
    *,
    task: str,
    metric: str,
    model: str = QUANTIZED,
) -> Score:
    """`statistic` of the units as they are, with standard error and 95 % interval over resamples.

    `statistic` maps weights `[n, units]` to values `[n]`. One unit says nothing about spread: NaN.
    """
    units = weights.shape[1]
    value = float(statistic(torch.ones(1, units, dtype=torch.float64)))
    if units < 2:
        return Score(task, metric, value, model=model)
    draws = statistic(weights)
    if not bool(draws.isfinite().all()):
        return Score(task, metric, value, math.nan, math.nan, math.nan, model)
    low, high = torch.quantile(draws, torch.tensor([LOW, HIGH], dtype=torch.float64)).tolist()
    return Score(task, metric, value, float(draws.std()), low, high, model)


def weighted_mean(values: Tensor) -> Callable[[Tensor], Tensor]:
    """The statistic: mean of one value per unit `[units]`."""
    return lambda weights: weights @ values.double() / weights.sum(dim=1)


def weighted_ratio(numerators: Tensor, denominators: Tensor) -> Callable[[Tensor], Tensor]:
    """The statistic: sum of the numerators over sum of the denominators, each `[units]`."""
    return lambda weights: (weights @ numerators.double()) / (weights @ denominators.double())


def weighted_quantile(values: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    """The statistic: the value that at most `1 - share` of all tokens exceed; values `[units, tokens]`.

    An exact order statistic (no interpolation). Only as much of the sorted tail as the resamples
    reach is looked at.
    """
    tokens = values.shape[1]
    ordered, positions = values.double().flatten().sort(descending=True, stable=True)
    owners = positions // tokens
    allowed = math.floor((1 - share) * values.numel() + 1e-9)

    def statistic(weights: Tensor) -> Tensor:
        reach = min(values.numel(), 4 * allowed + 4 * tokens)
        while True:
            covered = weights[:, owners[:reach]].cumsum(dim=1)
            beyond = covered > allowed
            if reach == values.numel() or bool(beyond[:, -1].all()):
                return ordered[beyond.int().argmax(dim=1)]
            reach = min(values.numel(), 2 * reach)

    return statistic
