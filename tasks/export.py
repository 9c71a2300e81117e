"""Stage export: blocks and routers to a checkpoint folder that other software loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.clock import note_work
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
    plan: ArtifactRef,
    blocks: ArtifactRef,
    routers: ArtifactRef | None,
    export: ExportConfig,
) -> None:
    """Write the checkpoint: weights, config and tokenizer."""
    from alphaquant.export.dense import export_dense
    from alphaquant.export.packed import export_packed
    from alphaquant.plan import QuantPlan
    from alphaquant.work import Work, bytes_in

    weights, folders = open_weights(store, model), store.block_paths(blocks)
    repaired = load_routers(store, routers)
    if export.format == "dense":
        export_dense(weights, folders, repaired, out)
    else:
        export_packed(
            weights,
            folders,
            repaired,
            out,
            export.format,
            activations=QuantPlan.load(store.path(plan), weights.plannable).activations,
            module_names="gptqmodel" in export.consumers,
            kv_cache=export.kv_cache,
        )
    note_work(
        lambda: {
            "load weights": Work(read=bytes_in(*folders)),
            "write": Work(written=bytes_in(out)),
        }
    )
