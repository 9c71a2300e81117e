"""Several plans of one model in one table: what an arm hands to its trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan

if TYPE_CHECKING:
    import pandas as pd


def plans_table(plans: Sequence[QuantPlan]) -> pd.DataFrame:
    """`plans.parquet`: draw (from 0), linear, scheme; bf16 for what is kept."""
    import pandas as pd

    return pd.DataFrame(
        [
            (draw, spec.name, str(plan.schemes[spec.name]))
            for draw, plan in enumerate(plans)
            for spec in plan.specs
        ],
        columns=["draw", "linear", "scheme"],
    )


def read_plans(table: pd.DataFrame, specs: Sequence[LinearSpec]) -> list[QuantPlan]:
    """The plans that `plans_table` wrote, in order; linears of `specs` that they leave out are dropped."""
    found = []
    for _, rows in table.groupby("draw", sort=True):
        schemes = {
            name: Scheme.parse(text, group_size=None)
            for name, text in zip(rows["linear"], rows["scheme"], strict=True)
        }
        found.append(QuantPlan([spec for spec in specs if spec.name in schemes], schemes))
    return found
