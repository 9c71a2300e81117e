"""Comparing arms of an experiment: means and differences with intervals that know what was drawn by chance.

An arm was measured with several calibration seeds, on windows of held-out text, and where it is drawn at
random with several plans per seed. A resample draws seeds, windows and plans anew with replacement. All
arms see the same seeds and windows in it, so that hard text and lucky calibration cancel in differences;
plans are drawn for each arm on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LOW, HIGH = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; NaN bounds where one window says nothing about spread."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


class Resamples:
    """The same draws for every arm of an experiment."""

    def __init__(
        self, seeds: int, windows: int, resamples: int = RESAMPLES, random_seed: int = 0
    ) -> None:
        self._random = np.random.default_rng(random_seed)
        self._windows = _counts(self._random, windows, resamples)
        self._seeds = _counts(self._random, seeds, resamples)

    def means(self, values: Sequence[Floats]) -> tuple[float, Floats]:
        """Mean of an arm, and its mean in every resample; `values` are `[draws, windows]` per seed."""
        total = np.zeros(len(self._windows))
        for seed, measured in enumerate(values):
            draws = _counts(self._random, measured.shape[0], len(self._windows))
            per_draw = measured @ self._windows.T / measured.shape[1]  # [draws, resamples]
            mean = (draws.T * per_draw).sum(axis=0) / measured.shape[0]
            total += self._seeds[:, seed] * mean
        plain = float(np.mean([measured.mean() for measured in values]))
        return plain, total / len(values)

    @property
    def informative(self) -> bool:
        """Whether there is more than one window to resample."""
        return bool(self._windows.shape[1] > 1)


def _counts(random: np.random.Generator, units: int, resamples: int) -> Floats:
    """How often each unit is drawn in each resample. # [resamples, units]"""
    drawn = random.multinomial(units, np.full(units, 1 / units), size=resamples)
    return drawn.astype(np.float64)


class Comparison:
    """Every arm's mean divergence, and how any two differ."""

    def __init__(
        self, arms: Mapping[str, Sequence[Floats]], resamples: int = RESAMPLES, random_seed: int = 0
    ) -> None:
        """`arms` are measured values `[draws, windows]` per seed, the same seeds and windows for all."""
        shapes = {(len(values), values[0].shape[1]) for values in arms.values()}
        if len(shapes) != 1:
            raise ValueError(f"arms were measured on different seeds or windows: {sorted(shapes)}")
        [(seeds, windows)] = shapes
        drawn = Resamples(seeds, windows, resamples, random_seed)
        self._informative = drawn.informative
        self._means = {name: drawn.means(values) for name, values in arms.items()}

    def __contains__(self, arm: str) -> bool:
        return arm in self._means

    def mean(self, arm: str) -> Interval:
        """An arm's mean."""
        value, resampled = self._means[arm]
        return self._interval(value, resampled)

    def change(self, arm: str, against: str) -> Interval:
        """How much lower (negative) or higher an arm's mean is, as a share of the other's."""
        (one, ones), (other, others) = self._means[arm], self._means[against]
        return self._interval(one / other - 1, ones / others - 1)

    def beats(self, arm: str, against: str) -> bool:
        """Whether the arm's mean is lower beyond chance."""
        return self.change(arm, against).high < 0

    def _interval(self, value: float, resampled: Floats) -> Interval:
        if not self._informative:
            return Interval(value, np.nan, np.nan)
        low, high = np.percentile(resampled, [LOW, HIGH])
        return Interval(value, float(low), float(high))
