"""Stage alpha: the tail exponent of every linear's spectrum."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.clock import note_work
from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AlphaConfig, ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("alpha", gpu=True)
def alpha(
    out: Path, store: Workbench, *, model: ModelRef, alpha: AlphaConfig, execution: ExecutionConfig
) -> None:
    """Write `alpha.parquet`, one row per linear."""
    from alphaquant.algorithms.alpha import alpha_table
    from alphaquant.floor import spectra
    from alphaquant.models.device import compute_device

    checkpoint = open_model(model)
    table = alpha_table(
        checkpoint,
        alpha,
        execution.workers,
        device=compute_device(execution.device),
        memory_limit=execution.memory_bytes,
    )
    note_work(partial(spectra, checkpoint, alpha))
    table.to_parquet(out / "alpha.parquet", index=False)
