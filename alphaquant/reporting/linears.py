"""One row per linear: alpha, sensitivity, plan and error side by side, and how their ranks agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import ATTENTION_ROLES
from alphaquant.reporting.statistics import (
    Correlation,
    Floats,
    indicator_columns,
    rank_correlation,
    ranks,
)
from alphaquant.reporting.tables import ReportInputs

_IDENTITY = ["linear", "role", "block", "expert", "rows", "cols"]


@dataclass(frozen=True)
class Relation:
    """How alpha and one other column rank the linears: as they are, and given what else differs."""

    x: str
    y: str
    y_label: str
    """What y is, for an axis, with its unit."""
    thing: str
    """What y is, in a sentence."""
    data: pd.DataFrame
    """The linears that have both, with the identity columns."""
    controls: Floats  # [n, p]
    given: str
    """The controls in words."""
    plain: Correlation
    partial: Correlation


def linear_table(inputs: ReportInputs) -> pd.DataFrame:
    """Every linear that any table knows, with the columns of all of them.

    Adds `size` (weights), `scheme` (the plan's, as text), `loss` (predicted loss at the plan's scheme) and
    `loss_per_weight` (nats per token per million weights at the reference format).
    """
    known = [table for table in (inputs.plan, inputs.alpha) if table is not None]
    if not known:
        return pd.DataFrame(columns=[*_IDENTITY, "size"])
    table = pd.concat([frame[_IDENTITY] for frame in known]).drop_duplicates("linear")
    table = table.assign(size=table["rows"] * table["cols"])
    table = _join(table, inputs.alpha, ["alpha", "alpha_null", "z", "small", "log_variance"])
    if inputs.plan is not None:
        plan = inputs.plan.assign(scheme=schemes(inputs.plan))
        table = _join(table, plan, ["scheme", "format", "bits_per_weight"])
    table = _join(table, inputs.errors, ["error_rtn", "error", "weight_error", "tokens"])
    return _with_losses(table, inputs).reset_index(drop=True)


def schemes(plan: pd.DataFrame) -> list[str]:
    """The plan's schemes as text, such as int4-g128-sym."""
    groups = plan["group_size"] if "group_size" in plan.columns else [None] * len(plan)
    symmetry = plan["symmetric"] if "symmetric" in plan.columns else [True] * len(plan)
    return [
        str(Scheme(str(name), None if pd.isna(group) else int(group), bool(even)))
        for name, group, even in zip(plan["format"], groups, symmetry, strict=True)
    ]


def reference_format(sensitivity: pd.DataFrame, bits: float) -> str | None:
    """The measured format that covers most linears and is nearest to `bits`; never an unrounded one."""
    rounded = sensitivity[sensitivity["bits_per_weight"] < 15.99]
    if rounded.empty:
        return None
    groups = rounded.groupby("format", sort=True)
    covered, middle = groups["linear"].nunique(), groups["bits_per_weight"].mean()
    most = covered[covered == covered.max()].index
    return str((middle[most] - bits).abs().sort_values(kind="stable").index[0])


def relate(
    linears: pd.DataFrame, y: str, y_label: str, *, thing: str, x: str = "alpha"
) -> Relation | None:
    """Rank correlation of two columns over a block's linears other than routers; None if one is missing.

    Given: role, depth (every block is a category of its own, so any course over depth is taken out), size,
    and for an error at the plan's own format that format.
    """
    if x not in linears.columns or y not in linears.columns:
        return None
    data = linears[linears["block"].notna() & (linears["role"] != "router")]
    values = data[[x, y]].astype("float64")
    data = data[np.isfinite(values[x]) & np.isfinite(values[y])].reset_index(drop=True)
    at_plan = y.startswith(("error", "weight_error"))
    if at_plan and "scheme" not in linears.columns:
        return None
    if at_plan:
        data = data[data["bits_per_weight"] < 15.99].reset_index(drop=True)
    labels = ["role", "block", *(["scheme"] if at_plan else [])]
    kinds = [indicator_columns(data[label].to_numpy(dtype=str)) for label in labels]
    controls = np.column_stack([*kinds, ranks(data["size"].to_numpy(dtype="float64"))])
    first, second = (data[name].to_numpy(dtype="float64") for name in (x, y))
    groups = _groups(data)
    return Relation(
        x=x,
        y=y,
        y_label=y_label,
        thing=thing,
        data=data,
        controls=controls,
        given="role, depth, size and format" if at_plan else "role, depth and size",
        plain=rank_correlation(first, second, groups=groups),
        partial=rank_correlation(first, second, controls=controls, groups=groups),
    )


def _groups(data: pd.DataFrame) -> Floats:
    """One label per attention, dense MLP or expert of a block: their linears are resampled together."""
    attention = data["role"].isin(list(ATTENTION_ROLES))
    expert = data["expert"].fillna(-1).astype("float64").where(~attention, -2.0)
    pairs = np.column_stack([data["block"].to_numpy(dtype="float64"), expert.to_numpy()])
    return np.unique(pairs, axis=0, return_inverse=True)[1].astype(np.float64)


def _join(table: pd.DataFrame, other: pd.DataFrame | None, columns: list[str]) -> pd.DataFrame:
    if other is None:
        return table
    present = [column for column in columns if column in other.columns]
    once = other.drop_duplicates("linear")[["linear", *present]]
    return table.merge(once, on="linear", how="left", validate="one_to_one")


def _with_losses(table: pd.DataFrame, inputs: ReportInputs) -> pd.DataFrame:
    if inputs.sensitivity is None:
        return table
    measured = inputs.sensitivity.drop_duplicates(["linear", "format"])
    if "scheme" in table.columns:
        chosen = measured.rename(columns={"format": "scheme", "predicted_loss": "loss"})
        table = table.merge(
            chosen[["linear", "scheme", "loss"]], on=["linear", "scheme"], how="left"
        )
    reference = reference_format(measured, plan_bits(table) or 4.0)
    if reference is None:
        return table
    at = measured[measured["format"] == reference].set_index("linear")["predicted_loss"]
    return table.assign(
        loss_per_weight=table["linear"].map(at).astype("float64") / table["size"] * 1e6
    )


def plan_bits(linears: pd.DataFrame) -> float | None:
    """Stored bits per weight over all linears of the plan."""
    if "bits_per_weight" not in linears.columns:
        return None
    planned = linears[linears["bits_per_weight"].notna()]
    return (
        float(np.average(planned["bits_per_weight"], weights=planned["size"]))
        if len(planned)
        else None
    )
