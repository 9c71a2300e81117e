"""Stage evaluate: what the compressed model lost against its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.store.artifacts import ArtifactRef
from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import EvaluationConfig, ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("evaluate", gpu=True)
def evaluate(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    checkpoint: ArtifactRef | ModelRef,
    plan: ArtifactRef | None,
    evaluation: EvaluationConfig,
    files: dict[str, str],
    execution: ExecutionConfig,
) -> None:
    """Write `scores.parquet`, one row per task, metric and model.

    `checkpoint` is one of the store's or any model folder; `plan` tells which activations to simulate;
    `files`, digests of the text and task files that `evaluation` names, is for the key.
    """
    from alphaquant.evaluation.evaluate import evaluate_checkpoint
    from alphaquant.models.device import compute_device
    from alphaquant.plan import QuantPlan

    original = open_model(model)
    folder = store.path(checkpoint) if isinstance(checkpoint, ArtifactRef) else checkpoint.path
    table = evaluate_checkpoint(
        original,
        Path(folder),
        evaluation,
        device=compute_device(execution.device),
        batch_size=execution.batch_size,
        activations=QuantPlan.load(store.path(plan), original.plannable).activations
        if plan
        else None,
    )
    table.to_parquet(out / "scores.parquet", index=False)
