"""How two checkpoints of one model compare on the same windows: ratios of their divergence, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.evaluation.bootstrap import bootstrap_score, resample_weights, weighted_ratio


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95 % interval; NaN where nothing is known."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


def kl_ratio(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """Mean divergence over that of `base`, both per window of the same text; windows are resampled in pairs.

    Raises ValueError when the windows are not as many.
    """
    return kl_ratio_of_draws([(ours, base)])


def kl_ratio_of_draws(draws: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """The geometric mean of such ratios over draws of calibration windows, each a pair as `kl_ratio` takes it.

    The interval is over held-out windows, the same ones for all draws: these draws are taken as all there are. NaN
    without draws.
    """
    if not draws:
        return Ratio()
    for ours, base in draws:
        if len(ours) != len(base):
            raise ValueError(f"{len(ours)} windows cannot be paired with {len(base)}")
    ratios = [
        weighted_ratio(*(torch.tensor([*values], dtype=torch.float64) for values in draw))
        for draw in draws
    ]

    def mean(weights: Tensor) -> Tensor:
        return torch.stack([ratio(weights).log() for ratio in ratios]).mean(0).exp()

    found = bootstrap_score(mean, resample_weights(len(draws[0][0])), task="", metric="")
    return Ratio(found.value, found.low, found.high)


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios; NaN values are left out, and of nothing it is NaN."""
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
