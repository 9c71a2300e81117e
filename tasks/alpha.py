"""Stage alpha: the tail exponent of every linear's spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AlphaConfig, ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("alpha")
def alpha(
    out: Path, store: Workbench, *, model: ModelRef, alpha: AlphaConfig, execution: ExecutionConfig
) -> None:
    """Write `alpha.parquet`, one row per linear."""
    from alphaquant.algorithms.alpha import alpha_table

    table = alpha_table(open_model(model), alpha, execution.workers)
    table.to_parquet(out / "alpha.parquet", index=False)
