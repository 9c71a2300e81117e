"""Stage allocate: alpha, predicted losses and a policy to a format for every linear."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphaquant.progress import unreported
from tasks.inputs import open_model, read_table
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AllocationConfig, ExportConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("allocate")
def allocate(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    export: ExportConfig,
    alpha: ArtifactRef | None,
    sensitivity: ArtifactRef | None,
) -> None:
    """Write `plan.parquet`, one row per linear, `plan.json`, the same in the seed's form, and
    `allocation.json`: what other granularities would cost, and what weight alpha's prior was given.

    Raises PlanError for a plan whose checkpoint would not load in export.consumers.
    """
    from alphaquant.algorithms.allocation import allocate as solve
    from alphaquant.algorithms.allocation_price import granularity_prices
    from alphaquant.algorithms.allocation_prior import learn_prior
    from alphaquant.algorithms.allocation_rules import resolve_rules
    from alphaquant.export.consumers import require, violations

    checkpoint = open_model(model)
    specs = checkpoint.plannable
    alphas = read_table(store, alpha, "alpha")
    losses = read_table(store, sensitivity, "sensitivity")
    plan = solve(specs, allocation, quantization, alphas, losses)
    require(violations(plan, checkpoint.architecture, export))
    plan.save(out)
    prices = granularity_prices(specs, allocation, quantization, alphas, losses)
    told: dict[str, Any] = {
        "granularities": [price.as_json() for price in prices],
        "alpha_prior": None,
    }
    if alphas is not None and losses is not None:
        with unreported():
            free = resolve_rules(specs, allocation, quantization).free
        if found := learn_prior(free, alphas, losses):
            used = allocation.policy == "budget" and allocation.alpha_prior
            told["alpha_prior"] = {"used": used, **asdict(found[0])}
    (out / "allocation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
