"""Stage compare: rival plans for the same model, quantized and measured beside the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import load_tokens, open_model
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
    model: ModelRef,
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
) -> None:
    """Write `rivals.parquet`, with the columns of `scores.parquet` and one label per rival.

    `files`, the digest of the text that `dataset` names, is for the key.
    """
    from alphaquant.evaluation.rivals import rival_scores
    from alphaquant.evaluation.scores import scores_table
    from alphaquant.models.device import compute_device
    from alphaquant.plan import QuantPlan
    from alphaquant.text.sources import load_documents
    from alphaquant.text.windows import evaluation_windows

    original = open_model(model)
    length = min(sequence_length, original.context_length)
    documents = load_documents(dataset, "evaluation")
    scores = rival_scores(
        original,
        QuantPlan.load(store.path(plan), original.specs),
        store.block_paths(blocks),
        load_tokens(store, tokens),
        evaluation_windows(original.tokenizer, documents, length, limit),
        allocation,
        quantization,
        comparison,
        device=compute_device(execution.device),
        batch_size=execution.batch_size,
    )
    scores_table(scores).to_parquet(out / "rivals.parquet", index=False)
