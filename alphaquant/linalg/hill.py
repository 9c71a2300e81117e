"""Hill estimate: the power-law exponent alpha of a spectrum's tail (Martin and Mahoney, 1810.01075)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TAIL = 10
"""A tail holds at least this many eigenvalues, however small the matrix."""
FLAT = 1e-5
"""A mean log excess below this is fp32 rounding, not slope."""


@dataclass(frozen=True, slots=True)
class HillFit:
    """Fit of p(λ) ∝ λ^-alpha to the `tail_size` largest eigenvalues, those above `xmin`.

    A spectrum without a sloping tail (fewer than two positive eigenvalues, or all of them equal)
    has no exponent: alpha and ks are nan and tail_size is 0.
    """

    alpha: float
    tail_size: int
    xmin: float
    ks: float
    """Kolmogorov-Smirnov distance between the tail and the fitted power law."""


def tail_count(count: int, tail_fraction: float, tail_size: int | None = None) -> int:
    """Eigenvalues in the tail of `count`: `tail_size`, or the given share, at least MIN_TAIL.

    At most count - 1: one eigenvalue has to be the reference.
    """
    wanted = max(MIN_TAIL, math.floor(tail_fraction * count)) if tail_size is None else tail_size
    return max(0, min(wanted, count - 1))


def hill_alpha(
    eigenvalues: Tensor, tail_fraction: float = 0.1, tail_size: int | None = None
) -> HillFit:
    """Exponent of ascending `eigenvalues` `[n]`: 1 + k / Σ ln(λ_i / λ_ref) over the k largest.

    λ_ref is the largest eigenvalue outside the tail. Where zeros reach into the tail (a matrix of
    rank k or less) the tail is cut to the positive eigenvalues above the smallest positive one.
    """
    values = eigenvalues.double()
    positive = values[values > 0]
    size = min(tail_count(len(values), tail_fraction, tail_size), len(positive) - 1)
    if size < 1:
        return _no_tail(positive)
    reference = positive[-size - 1]
    excess = torch.log(positive[-size:] / reference)
    mean = excess.mean().item()
    if mean < FLAT:
        return _no_tail(positive)
    # Under the fit ln(λ / λ_ref) is exponential with this mean.
    model = -torch.expm1(-excess / mean)
    steps = torch.arange(size + 1, dtype=torch.float64) / size
    ks = torch.maximum((model - steps[:-1]).abs(), (steps[1:] - model).abs()).max().item()
    return HillFit(1 + 1 / mean, size, reference.item(), ks)


def _no_tail(positive: Tensor) -> HillFit:
    xmin = positive[0].item() if len(positive) else 0.0
    return HillFit(math.nan, 0, xmin, math.nan)
