"""The verdict of an experiment: which arms beat which, and what follows for alpha.

The rule was fixed before anything was measured. Alpha helps when, in one direction, spending by alpha beats
both controls (the same formats shuffled within type and block; the same rule on alphas permuted within
type), and when adding alpha to what calibration measures beats doing without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from alphaquant.algorithms.arms import ArmName
from alphaquant.evaluation.paired import Comparison, Interval

Direction: TypeAlias = Literal["low", "high"]
DIRECTIONS: tuple[Direction, ...] = ("low", "high")

PAIRS: tuple[tuple[ArmName, ArmName], ...] = (
    ("low", "low_shuffled"),
    ("low", "low_permuted"),
    ("high", "high_shuffled"),
    ("high", "high_permuted"),
    ("low", "high"),
    ("low", "variance"),
    ("high", "variance"),
    ("low", "uniform"),
    ("high", "uniform"),
    ("local_alpha", "local"),
    ("fisher_prior", "fisher"),
    ("low", "fisher"),
    ("high", "fisher"),
    ("alphaq", "fisher"),
    ("kurtosis", "variance"),
    ("fisher", "uniform"),
    ("fisher", "types"),
    ("oracle", "fisher"),
)
"""What is compared, the first against the second."""
CONTROLS: dict[Direction, tuple[ArmName, ArmName]] = {
    "low": ("low_shuffled", "low_permuted"),
    "high": ("high_shuffled", "high_permuted"),
}
ADDITIONS: tuple[tuple[ArmName, ArmName], ...] = (
    ("local_alpha", "local"),
    ("fisher_prior", "fisher"),
)


@dataclass(frozen=True)
class Verdict:
    """What the comparisons say about alpha."""

    changes: dict[tuple[ArmName, ArmName], Interval]
    """Change of the first arm's KL against the second's, as a share, for every pair that was measured."""
    alone: tuple[Direction, ...]
    """Directions in which alpha beats both of its controls."""
    adds: tuple[tuple[ArmName, ArmName], ...]
    """Measurements that alpha makes better, the first of each pair with alpha."""

    @property
    def helps(self) -> bool:
        """Whether alpha helps by the rule."""
        return bool(self.alone and self.adds)

    @property
    def better(self) -> Direction | None:
        """The direction with the lower KL beyond chance; None where neither is."""
        change = self.changes.get(("low", "high"))
        if change is None or not change.excludes_zero:
            return None
        return "low" if change.value < 0 else "high"


def judge(comparison: Comparison) -> Verdict:
    """Apply the rule to measured arms."""
    changes = {
        (one, other): comparison.change(one, other)
        for one, other in PAIRS
        if one in comparison and other in comparison
    }

    def beats(one: ArmName, other: ArmName) -> bool:
        return (found := changes.get((one, other))) is not None and found.high < 0

    return Verdict(
        changes,
        tuple(d for d in DIRECTIONS if all(beats(d, control) for control in CONTROLS[d])),
        tuple(pair for pair in ADDITIONS if beats(*pair)),
    )
