"""The tables a report is made of: read, checked and brought to one form, whatever order they came in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from alphaquant.errors import StoreError
from alphaquant.models.linear import ROLES

REQUIRED: dict[str, tuple[str, ...]] = {
    "alpha": ("linear", "role", "block", "expert", "rows", "cols", "alpha"),
    "sensitivity": ("linear", "format", "bits_per_weight", "predicted_loss"),
    "plan": ("linear", "role", "block", "expert", "rows", "cols", "format", "bits_per_weight"),
    "errors": ("linear", "role", "block", "error_rtn", "error"),
    "tuning": ("block", "before", "after", "steps"),
    "scores": ("task", "metric", "value", "model"),
    "router_blocks": ("stage", "block", "changed"),
    "router_history": ("step", "heldout_kl"),
}
"""Columns that each table must have to be drawn; more are welcome."""

FILES = {
    "alpha": "alpha.parquet",
    "sensitivity": "sensitivity.parquet",
    "plan": "plan.parquet",
    "errors": "errors.parquet",
    "tuning": "tuning.parquet",
    "scores": "scores.parquet",
    "router_blocks": "router.parquet",
    "router_history": "history.parquet",
    "router": "router.json",
    "allocation": "allocation.json",
    "rotation": "rotation.json",
    "model_tuning": "model_tuning.json",
}
"""Where `read_inputs` looks for each table in a folder."""


@dataclass(frozen=True)
class ReportInputs:
    """All that one run knows. A table that the run did not make is None, and the report says so."""

    model: str
    """Name for people."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's config, section by section."""
    digest: str = ""
    """Digest of the original model's files."""
    model_type: str = ""
    """transformers' name of the architecture, such as olmoe."""
    parameters: int | None = None
    """All parameters of the original, embeddings and norms included."""
    tied: bool = False
    """Whether the original's head is its embedding; a quantized head then comes on top of the parameters."""
    total_bits: float | None = None
    """Bits that all parameters take after compression; empty: the plan's, and 16 for what is not in it."""
    alpha: pd.DataFrame | None = None
    sensitivity: pd.DataFrame | None = None
    plan: pd.DataFrame | None = None
    errors: pd.DataFrame | None = None
    tuning: pd.DataFrame | None = None
    """block, before, after: held-out error; steps: 0 where GPTQ's codes stayed."""
    scores: pd.DataFrame | None = None
    router: Mapping[str, Any] | None = None
    """{kl_before, kl_after, changed_before, changed_after, method}, or {skipped: reason}."""
    router_blocks: pd.DataFrame | None = None
    """stage (before, after), block, changed: share of tokens whose experts differ from the original's; error:
    relative error of the block's output, where routers were repaired block by block."""
    router_history: pd.DataFrame | None = None
    """step, train_loss, heldout_kl."""
    allocation: Mapping[str, Any] | None = None
    """{granularities: what each would cost, alpha_prior: what alpha adds to the measured losses, or None}."""
    rotation: Mapping[str, Any] | None = None
    """{peak_before, peak_after, ...}: the largest weight of a group against the root mean square weight."""
    model_tuning: Mapping[str, Any] | None = None
    """{kl_before, kl_after, steps}: what moving scales and norms of the whole model brought on held-out windows."""
    stages: Sequence[Mapping[str, Any]] = ()
    """{name, state, seconds, memory} of each stage, in order."""

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """One value of the config, or `default`."""
        found = self.config.get(section)
        return found.get(key, default) if isinstance(found, Mapping) else default


def read_inputs(tables: Path | Mapping[str, Path], model: str, **facts: Any) -> ReportInputs:
    """ReportInputs from a folder of tables, or from paths by table name (the keys of FILES).

    `facts` are the other fields of ReportInputs. A file that is not there is a table the run did not make;
    raises StoreError for one that cannot be read.
    """
    if isinstance(tables, Path):
        paths = {name: tables / file for name, file in FILES.items()}
    else:
        if unknown := sorted(set(tables) - set(FILES)):
            raise StoreError(
                f"the report knows no table {unknown[0]!r}; allowed: {', '.join(FILES)}"
            )
        paths = dict(tables)
    found: dict[str, Any] = {name: _read(path) for name, path in paths.items() if path.exists()}
    return ReportInputs(model=model, **found, **facts)


def tidy(inputs: ReportInputs) -> ReportInputs:
    """The same inputs with checked columns, nullable integers and rows in block, expert, role order.

    A table without rows becomes None. Raises StoreError for a missing column.
    """
    tables: dict[str, Any] = {
        item.name: _tidy(item.name, getattr(inputs, item.name))
        for item in fields(inputs)
        if item.name in REQUIRED
    }
    return replace(inputs, **tables)


def role_order(roles: Iterable[str]) -> list[str]:
    """The roles that occur, in the order in which a block uses them."""
    present = set(roles)
    return [role for role in ROLES if role in present] + sorted(present - set(ROLES))


def _read(path: Path) -> pd.DataFrame | dict[str, Any]:
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            return dict(content)
        return pd.read_parquet(path)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"cannot read {path} for the report: {error}. Run its stage again."
        ) from error


def _tidy(name: str, table: pd.DataFrame | None) -> pd.DataFrame | None:
    if table is None or table.empty:
        return None
    if missing := [column for column in REQUIRED[name] if column not in table.columns]:
        raise StoreError(
            f"the {name} table has no column {missing[0]!r} (found: {', '.join(map(str, table.columns))}); "
            f"a report needs {', '.join(REQUIRED[name])}"
        )
    table = table.copy()
    for column in ("block", "expert", "step"):
        if column in table.columns:
            table[column] = pd.to_numeric(table[column]).astype("Int64")
    if name in ("scores", "router_history"):
        return table.reset_index(drop=True)
    keys = [key for key in ("block", "expert") if key in table.columns]
    if "role" in table.columns:
        order = {role: place for place, role in enumerate(role_order(table["role"]))}
        table = table.assign(_role=table["role"].map(order))
        keys.append("_role")
    keys += [key for key in ("linear", "format", "stage") if key in table.columns]
    table = table.sort_values(keys, kind="stable", na_position="last").reset_index(drop=True)
    return table.drop(columns="_role", errors="ignore")
