"""Stage router: change the routers, and nothing else, to repair what rounding did to routing."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from alphaquant.store.stage import Skipped
from tasks.inputs import ROUTERS, load_tokens, open_weights
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig, RouterConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("router", gpu=True)
def router(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    plan: ArtifactRef,
    blocks: ArtifactRef,
    tokens: ArtifactRef,
    router: RouterConfig,
    execution: ExecutionConfig,
) -> Skipped | None:
    """Write `routers.safetensors` and what the repair changed: `router.json`, `router.parquet` (one row
    per block, before and after) and, of end-to-end training, `history.parquet`.
    """
    import pandas as pd
    from safetensors.torch import save_file

    from alphaquant.algorithms.router import repair_routers, trainable_routers
    from alphaquant.evaluation.passes import repairing
    from alphaquant.plan import QuantPlan

    checkpoint = open_weights(store, model)
    if not any(spec.role == "router" for spec in checkpoint.specs):
        return Skipped("the model is dense: it has no routers")
    if checkpoint.architecture.kind == "generic":
        return Skipped("a generic row does not know how the model's routers choose experts")
    routers = trainable_routers(checkpoint, QuantPlan.load(store.path(plan), checkpoint.plannable))
    if not routers:
        return Skipped("the plan quantizes every router; only routers kept bf16 are repaired")
    windows, room = load_tokens(store, tokens), room_of(execution)
    if way := repairing(router):
        room.check_blocks(checkpoint, windows.shape[0], windows.shape[1], way)
    result = repair_routers(
        checkpoint, store.block_paths(blocks), routers, windows, router, device=room.device
    )
    save_file(result.tensors, out / ROUTERS)
    found = {
        "before": (result.changed_before, result.error_before),
        "after": (result.changed_after, result.error_after),
    }
    rows = [
        {"stage": stage, "block": block, "changed": share, "error": error}
        for stage, (shares, errors) in found.items()
        for block, share, error in zip(result.blocks, shares, errors, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(out / "router.parquet", index=False)
    if result.history:
        pd.DataFrame(result.history).to_parquet(out / "history.parquet", index=False)
    facts = {
        "method": router.method,
        "kl_before": result.kl_before,
        "kl_after": result.kl_after,
        "changed_before": fmean(result.changed_before),
        "changed_after": fmean(result.changed_after),
    }
    (out / "router.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return None
