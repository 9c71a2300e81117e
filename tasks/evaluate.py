"""Stage evaluate: what the compressed model lost against its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.store.artifacts import ArtifactRef
from tasks.inputs import open_model
from tasks.room import room_of
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
    baseline: ArtifactRef | None,
    answers: ArtifactRef | None,
    execution: ExecutionConfig,
) -> None:
    """Write `scores.parquet`, one row per task, metric and model.

    `checkpoint` is one of the store's or any model folder; `plan` tells which activations to simulate;
    `files`, digests of the task files that `evaluation` names, is for the key; `baseline` and `answers` are what the
    original makes of the text and the tasks, None where nobody asked for such scores.
    """
    from alphaquant.evaluation.answers import load_answers
    from alphaquant.evaluation.baseline import Baseline
    from alphaquant.evaluation.evaluate import score_checkpoint
    from alphaquant.plan import QuantPlan

    original = open_model(model)
    folder = store.path(checkpoint) if isinstance(checkpoint, ArtifactRef) else checkpoint.path
    table = score_checkpoint(
        original,
        Path(folder),
        evaluation,
        Baseline(store.path(baseline)) if baseline else None,
        load_answers(store.path(answers)) if answers else None,
        room_of(execution),
        activations=QuantPlan.load(store.path(plan), original.plannable).activations
        if plan
        else None,
    )
    table.to_parquet(out / "scores.parquet", index=False)
