"""What was measured, as one long table that the page and the figure are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from alphaquant.evaluation.paired import Comparison, Floats
from benchmarks.budgets.spending import POLICIES, RecipeName
from benchmarks.rivals.standing import standing
from benchmarks.rivals.table import Result

BAR = "budget"
"""The policy whose plans of equal bits and rounding all others are compared with."""


@dataclass(frozen=True)
class Trial:
    """A plan that was quantized and scored."""

    policy: str
    recipe: RecipeName
    target: float
    """Bits per weight that the plan may store at most."""
    draw: int
    bits_per_weight: float
    """Bits per weight that it stores."""
    variant: str
    """How it was chosen, where there was a choice."""
    result: Result


COLUMNS = [
    *("model", "text", "standing", "recipe", "policy", "target_bits", "bits_per_weight", "plans"),
    *("variant", "kl", "low", "high", "ratio", "ratio_low", "ratio_high"),
]


def long_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One line per model, text, recipe, target and policy: KL, and its ratio to that of `budget`.

    Intervals are over windows, and over plans where chance has a part. Failed cells are left out.
    """
    groups: dict[tuple[str, str, RecipeName, float], dict[str, list[Trial]]] = {}
    for one in trials:
        for text in one.result.kl:
            key = (one.result.model, text, one.recipe, one.target)
            groups.setdefault(key, {}).setdefault(one.policy, []).append(one)
    lines = []
    for (model, text, recipe, target), found in groups.items():
        compared = Comparison({name: [_windows(own, text)] for name, own in found.items()})
        for name in (policy.name for policy in POLICIES if policy.name in found):
            own, mean = found[name], compared.mean(name)
            line = {
                "model": model,
                "text": text,
                "standing": standing(model, text),
                "recipe": recipe,
                "policy": name,
                "target_bits": target,
                "bits_per_weight": float(np.mean([one.bits_per_weight for one in own])),
                "plans": len(own),
                "variant": own[0].variant if len(own) == 1 else "",
                "kl": mean.value,
                "low": mean.low,
                "high": mean.high,
            }
            if BAR in compared and name != BAR:
                change = compared.change(name, BAR)
                line |= {
                    "ratio": 1 + change.value,
                    "ratio_low": 1 + change.low,
                    "ratio_high": 1 + change.high,
                }
            lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def _windows(own: Sequence[Trial], text: str) -> Floats:
    """Divergence of every plan's windows. # [plans, windows]"""
    return np.array([one.result.kl[text] for one in own], dtype=np.float64)
