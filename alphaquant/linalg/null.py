"""Null of alpha: its mean and spread over matrices of independent Gaussians of one shape.

The eigenvalues of a Gaussian `[short, long]` matrix are drawn without the matrix, from a bidiagonal
factor of chi variables (Dumitriu and Edelman, math-ph/0206043). Large matrices need no drawing: the
Marchenko-Pastur law gives the mean; the remainder shrinks as 1 / short at a fixed aspect ratio and
the spread as √ln(short) / short (eigenvalues repel), so both are taken from a smaller matrix.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigvalsh_tridiagonal

from alphaquant.linalg.farms import WINDOW, block_corners
from alphaquant.linalg.hill import MIN_TAIL, hill_alpha, tail_count

Floats = npt.NDArray[np.float64]

DRAWN_SIDE = 512
"""Matrices with a longer short side are extrapolated from this size, or more for a tiny tail."""
DRAWS = 128
_FLUCTUATION = 16
"""Rows by which the turning point of a drawn matrix may lie behind that of the law."""


@lru_cache(maxsize=1024)
def alpha_null(
    rows: int,
    cols: int,
    tail_fraction: float = 0.1,
    estimator: Literal["hill", "farms"] = "hill",
    seed: int = 0,
    tail_size: int | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of alpha for an iid Gaussian `[rows, cols]`; nan below two rows."""
    short, long = sorted((rows, cols))
    if short < 2:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    if estimator == "farms":
        side, blocks = min(short, WINDOW), len(block_corners(rows, cols, seed))
        return _farms_null(
            side, blocks, tail_count(side * blocks, tail_fraction, tail_size), random
        )
    size = tail_count(short, tail_fraction, tail_size)
    side = min(short, max(DRAWN_SIDE, math.ceil(MIN_TAIL * short / size)))
    shrink = side / short
    drawn_long, drawn_size = round(long * shrink), round(size * shrink)
    rows_drawn = rows_of_tail(side, drawn_long, min(drawn_size + 1, side))
    spectra = (gaussian_spectrum(side, drawn_long, random, rows=rows_drawn) for _ in range(DRAWS))
    alphas = np.array([_alpha(values, drawn_size) for values in spectra])
    mean, spread = float(alphas.mean()), float(alphas.std(ddof=1))
    if side == short:
        return mean, spread
    remainder = mean - _alpha(marchenko_pastur(side, drawn_long), drawn_size)
    limit = _alpha(marchenko_pastur(short, long), size)
    return limit + remainder * shrink, spread * shrink * math.sqrt(math.log(short) / math.log(side))


def gaussian_spectrum(
    short: int, long: int, random: np.random.Generator, *, rows: int | None = None
) -> Floats:
    """Eigenvalues `[short]`, ascending, of GGᵀ for a standard Gaussian G `[short, long]`.

    With `rows`, see `rows_of_tail`, those of so many rows of the factor alone `[rows]`.
    """
    diagonal = np.sqrt(random.chisquare(long - np.arange(short)))
    below = np.sqrt(random.chisquare(short - 1 - np.arange(short - 1)))
    squares = diagonal**2
    squares[1:] += below**2
    beside, kept = diagonal[:-1] * below, slice(rows)
    values: Floats = eigvalsh_tridiagonal(
        squares[kept], beside[: squares[kept].size - 1], lapack_driver="sterf"
    )
    return values


def rows_of_tail(short: int, long: int, size: int) -> int:
    """Rows of the factor of `gaussian_spectrum` that its `size` largest eigenvalues depend on in fp64.

    Behind row i lies a Gaussian `[short - i, long - i]`, whose largest eigenvalue is (√(short - i) + √(long - i))². Where that
    sinks below an eigenvalue, its eigenvector turns into an Airy function, which falls by 1e-12 within eight of its lengths.
    """
    smallest = marchenko_pastur(short, long)[-size]
    behind = np.arange(short)
    narrow, wide = np.sqrt(short - behind), np.sqrt(long - behind)
    within = (narrow + wide) ** 2 >= smallest
    turn = int(within.sum()) - 1
    slope = 2 + narrow[turn] / wide[turn] + wide[turn] / narrow[turn]
    length = (narrow[turn] * wide[turn] / slope) ** (1 / 3)
    return min(short, turn + math.ceil(8 * float(length)) + _FLUCTUATION)


def marchenko_pastur(short: int, long: int) -> Floats:
    """Expected eigenvalues `[short]`, ascending: the law's quantiles at (i + 1/2) / short."""
    ratio = short / long
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    angle = np.linspace(0, math.pi, 100_001)
    support = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    # The density times dλ/dangle has no square-root ends, so that the trapezoid rule is accurate.
    density = np.sin(angle) ** 2 / np.maximum(support, 1e-300)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    quantiles: Floats = np.interp((np.arange(short) + 0.5) / short, mass / mass[-1], support)
    return quantiles * long


def _farms_null(
    side: int, blocks: int, size: int, random: np.random.Generator
) -> tuple[float, float]:
    """Mean and spread over resampled sets of `blocks` square spectra, overlaps taken as independent."""
    pool = np.stack([gaussian_spectrum(side, side, random) for _ in range(4 * DRAWS)])
    alphas = [
        _alpha(np.sort(pool[random.integers(len(pool), size=blocks)], axis=None), size)
        for _ in range(DRAWS)
    ]
    return float(np.mean(alphas)), float(np.std(alphas, ddof=1))


def _alpha(values: Floats, size: int) -> float:
    return hill_alpha(torch.from_numpy(values), tail_size=size).alpha
