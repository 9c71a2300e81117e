"""What the run shows about alpha, computed once: rank correlations and the equal-budget comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from alphaquant.reporting.budget import BudgetComparison, compare_orders
from alphaquant.reporting.linears import Relation, plan_bits, reference_format, relate
from alphaquant.reporting.tables import ReportInputs

SENSITIVITY = "sensitivity"
ROUNDING = "rounding error"


@dataclass(frozen=True)
class Findings:
    """Everything that the words and figures about alpha's direction draw on."""

    relations: Mapping[str, Relation]
    """By what alpha is set against; SENSITIVITY and ROUNDING are the two that are drawn."""
    budget: BudgetComparison | None


def find(inputs: ReportInputs, linears: pd.DataFrame) -> Findings:
    """Set alpha against whatever this run measured."""
    if inputs.alpha is None:
        return Findings({}, None)
    found: dict[str, Relation | None] = {}
    if inputs.sensitivity is not None:
        reference = reference_format(inputs.sensitivity, plan_bits(linears) or 4.0)
        label = f"predicted loss at {reference}\n(nats per token, per million weights)"
        found[SENSITIVITY] = relate(linears, "loss_per_weight", label, thing="sensitivity")
        found["sensitivity, by z"] = relate(
            linears, "loss_per_weight", label, thing="sensitivity", x="z"
        )
    label = "relative output error of rounding\n(no unit, at the plan's formats)"
    found[ROUNDING] = relate(linears, "error_rtn", label, thing="rounding error")
    if inputs.errors is not None and not _same(inputs.errors):
        found["error after the method"] = relate(
            linears, "error", "", thing="error after the method"
        )
    found["weight error"] = relate(linears, "weight_error", "", thing="weight error")
    comparison = None
    if inputs.sensitivity is not None and inputs.plan is not None:
        comparison = compare_orders(linears, inputs.sensitivity)
    return Findings({name: one for name, one in found.items() if one is not None}, comparison)


def _same(errors: pd.DataFrame) -> bool:
    before, after = (errors[name].to_numpy(dtype="float64") for name in ("error_rtn", "error"))
    return bool(np.allclose(before, after, rtol=1e-6, equal_nan=True))
