"""Arms: ways to spend the same bits that differ in what they know, so that their differences say what
alpha is worth.

`low` and `high` spend bits by alpha alone, in either direction. Their controls keep all but one thing:
`*_shuffled` the formats, not which linear of a type and block has which; `*_permuted` alpha's values, not
whose they are within a type. Strengths and estimators are chosen by predicted loss on the calibration text,
never by the text that scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

ArmName: TypeAlias = Literal[
    "uniform",
    "random",
    "types",
    "variance",
    "low",
    "low_shuffled",
    "low_permuted",
    "high",
    "high_shuffled",
    "high_permuted",
    "alphaq",
    "kurtosis",
    "local",
    "local_alpha",
    "fisher",
    "fisher_prior",
    "oracle",
]
ARM_NAMES: tuple[ArmName, ...] = get_args(ArmName)

Kind: TypeAlias = Literal["blind", "alpha", "control", "measured", "both"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to spend bits."""

    name: ArmName
    title: str
    kind: Kind
    """blind: knows nothing of the weights. alpha, control: from alpha, or from alpha spoilt. measured:
    from calibration. both: from calibration and alpha."""
    says: str
    """What it does, in a sentence."""
    drawn: bool = False
    """Whether chance has a part in it."""


_LIST = (
    Arm(
        "uniform",
        "uniform",
        "blind",
        "the two formats of the menu next to the budget, the dearer one spread evenly over the model",
    ),
    Arm("random", "random", "blind", "formats drawn at random for every linear", True),
    Arm(
        "types",
        "by type",
        "blind",
        "uniform's two formats, v and down first, first and last blocks first (as Q4_K_M does)",
    ),
    Arm("variance", "variance alone", "blind", "size times variance, without alpha (gamma 0)"),
    Arm("low", "low alpha", "alpha", "the smaller a linear's alpha, the more bits"),
    Arm(
        "low_shuffled",
        "low alpha, formats shuffled",
        "control",
        "the plan of `low` with its formats shuffled within type and block",
        True,
    ),
    Arm(
        "low_permuted",
        "low alpha, alpha permuted",
        "control",
        "the rule of `low` on alphas permuted within type",
        True,
    ),
    Arm("high", "high alpha", "alpha", "the larger a linear's alpha, the more bits"),
    Arm(
        "high_shuffled",
        "high alpha, formats shuffled",
        "control",
        "the plan of `high` with its formats shuffled within type and block",
        True,
    ),
    Arm(
        "high_permuted",
        "high alpha, alpha permuted",
        "control",
        "the rule of `high` on alphas permuted within type",
        True,
    ),
    Arm("alphaq", "AlphaQ's rule", "alpha", "AlphaQ's own formula: FARMS, low alpha, 4^-bits"),
    Arm("kurtosis", "kurtosis", "blind", "kurtosis of the weights in alpha's place"),
    Arm("local", "output error", "measured", "the change of each linear's output, predicted"),
    Arm(
        "local_alpha",
        "output error × alpha",
        "both",
        "the change of each linear's output, weighted by alpha",
    ),
    Arm(
        "fisher",
        "predicted loss",
        "measured",
        "the change of each linear's output times its Fisher information: policy budget",
    ),
    Arm(
        "fisher_prior",
        "predicted loss, alpha as prior",
        "both",
        "policy budget with alpha as a learned prior",
    ),
    Arm(
        "oracle",
        "one at a time",
        "measured",
        "the KL that each group of linears causes alone, measured on the calibration text",
    ),
)
ARMS: dict[ArmName, Arm] = {arm.name: arm for arm in _LIST}


def draws_of(arm: Arm, draws: int, seeds: int, number: int) -> int:
    """How many plans of an arm belong to the seed `number` (from 0), so that `draws` are made in all."""
    if not arm.drawn:
        return 1
    return max(1, draws * (number + 1) // seeds - draws * number // seeds)
