"""Stage compare: rival plans for the same model, quantized and measured beside the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import load_tokens, open_model, open_weights
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import (
        AllocationConfig,
        ComparisonConfig,
        ExecutionConfig,
        QuantizationConfig,
    )
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("compare", gpu=True)
def compare(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    plan: ArtifactRef,
    blocks: ArtifactRef,
    tokens: ArtifactRef,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    comparison: ComparisonConfig,
    baseline: ArtifactRef,
    execution: ExecutionConfig,
    original: ModelRef | None = None,
) -> None:
    """Write `rivals.parquet`, with the columns of `scores.parquet` and one label per rival.

    `baseline` is what rivals are measured against: what `original` makes of held-out text when `model` is its rotated
    form, `model` itself otherwise.
    """
    from alphaquant.evaluation.baseline import Baseline
    from alphaquant.evaluation.rivals import rival_scores
    from alphaquant.evaluation.scores import scores_table
    from alphaquant.plan import QuantPlan

    checkpoint, room = open_weights(store, model), room_of(execution)
    kept = Baseline(store.path(baseline))
    scores = rival_scores(
        checkpoint,
        QuantPlan.load(store.path(plan), checkpoint.plannable),
        store.block_paths(blocks),
        load_tokens(store, tokens),
        kept.windows,
        kept.predictions(open_model(original) if original else checkpoint, room.device),
        allocation,
        quantization,
        comparison,
        room,
        rotated=original is not None,
    )
    scores_table(scores).to_parquet(out / "rivals.parquet", index=False)
