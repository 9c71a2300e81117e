"""Stage compare: rival plans for the same model, quantized and measured beside the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import load_tokens, open_model, open_weights
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
    dataset: str,
    sequence_length: int,
    limit: int | None,
    files: dict[str, str],
    execution: ExecutionConfig,
    original: ModelRef | None = None,
) -> None:
    """Write `rivals.parquet`, with the columns of `scores.parquet` and one label per rival.

    `files`, the digest of the text that `dataset` names, is for the key. `original` is what rivals are
    measured against when `model` is its rotated form.
    """
    from alphaquant.evaluation.rivals import rival_scores
    from alphaquant.evaluation.scores import scores_table
    from alphaquant.models.device import compute_device
    from alphaquant.plan import QuantPlan
    from alphaquant.text.sources import load_documents
    from alphaquant.text.windows import evaluation_windows

    checkpoint = open_weights(store, model)
    length = min(sequence_length, checkpoint.context_length)
    documents = load_documents(dataset, "evaluation")
    scores = rival_scores(
        checkpoint,
        QuantPlan.load(store.path(plan), checkpoint.plannable),
        store.block_paths(blocks),
        load_tokens(store, tokens),
        evaluation_windows(checkpoint.tokenizer, documents, length, limit),
        allocation,
        quantization,
        comparison,
        device=compute_device(execution.device),
        batch_size=execution.batch_size,
        original=open_model(original) if original else None,
    )
    scores_table(scores).to_parquet(out / "rivals.parquet", index=False)
