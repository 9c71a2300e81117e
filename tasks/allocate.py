"""Stage allocate: alpha, predicted losses and a policy to a format for every linear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AllocationConfig, QuantizationConfig
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
    alpha: ArtifactRef | None,
    sensitivity: ArtifactRef | None,
) -> None:
    """Write `plan.parquet`, one row per linear, and `plan.json`, the same in the seed's form."""
    import pandas as pd

    from alphaquant.algorithms.allocation import allocate as solve

    plan = solve(
        open_model(model).specs,
        allocation,
        quantization,
        pd.read_parquet(store.path(alpha) / "alpha.parquet") if alpha else None,
        pd.read_parquet(store.path(sensitivity) / "sensitivity.parquet") if sensitivity else None,
    )
    plan.save(out)
