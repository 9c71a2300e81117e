"""The original's answers to lm-eval tasks on disk, computed once for every checkpoint that is held against them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pandas as pd

from alphaquant.evaluation.harness import TaskRun
from alphaquant.evaluation.scores import Score, scores_table

ANSWERS, SCORES = "answers.parquet", "task_scores.parquet"


def save_answers(run: TaskRun, folder: Path) -> None:
    """Write `answers.parquet`, one row per task, metric and question, and `task_scores.parquet` like `scores.parquet`."""
    rows = [
        (task, metric, question, value)
        for (task, metric), answers in run.answers.items()
        for question, value in answers.items()
    ]
    table = pd.DataFrame(rows, columns=["task", "metric", "question", "value"])
    table.to_parquet(folder / ANSWERS, index=False)
    scores_table(run.scores).to_parquet(folder / SCORES, index=False)


def load_answers(folder: Path) -> TaskRun:
    """What `save_answers` was given."""
    columns = [field.name for field in fields(Score)]
    scores = pd.read_parquet(folder / SCORES)[columns]
    answers: dict[tuple[str, str], dict[int, float]] = {}
    table = pd.read_parquet(folder / ANSWERS)
    for task, metric, question, value in table.itertuples(index=False, name=None):
        answers.setdefault((task, metric), {})[question] = value
    return TaskRun([Score(*row) for row in scores.itertuples(index=False)], answers)
