"""Stage export: blocks and routers to a checkpoint folder that other software loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import load_routers, open_weights
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExportConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("export")
def export(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    blocks: ArtifactRef,
    routers: ArtifactRef | None,
    export: ExportConfig,
) -> None:
    """Write the checkpoint: weights, config and tokenizer."""
    from alphaquant.export.dense import export_dense

    export_dense(
        open_weights(store, model),
        store.block_paths(blocks),
        load_routers(store, routers),
        out,
    )
