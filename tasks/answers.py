"""Stage answers: what the original answers to the evaluation's tasks, which every checkpoint is held against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import open_model
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("answers", gpu=True)
def answers(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    tasks: tuple[str, ...],
    sequence_length: int,
    limit: int | None,
    files: dict[str, str],
    execution: ExecutionConfig,
) -> None:
    """Write `answers.parquet`, one row per task, metric and question, and `task_scores.parquet`, the original's rows
    of `scores.parquet`. `files`, digests of the task files among `tasks`, is for the key.
    """
    from alphaquant.evaluation.answers import save_answers
    from alphaquant.evaluation.evaluate import original_answers

    original, room = open_model(model), room_of(execution)
    save_answers(original_answers(original, tasks, sequence_length, limit, room), out)
