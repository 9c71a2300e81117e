"""lm-eval tasks: ours without a network, any of lm-eval's by name, and a user's own YAML file."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from alphaquant.clock import timed
from alphaquant.errors import DataError, first_line, nearest
from alphaquant.evaluation.bootstrap import (
    bootstrap_score,
    resample_weights,
    weighted_mean,
    weighted_ratio,
)
from alphaquant.evaluation.builtin_tasks import BUILTIN_TASKS, builtin_task
from alphaquant.evaluation.scores import QUANTIZED, Score
from alphaquant.progress import track

NORMAL = 1.96
"""Standard errors on either side of a 95 % interval."""
_BOOTSTRAP = 200
_FEWSHOT_SEED = 1234
_NOISY = ("lm_eval", "lm-eval", "datasets", "transformers")


@dataclass(frozen=True, slots=True)
class TaskRun:
    """Scores of one model, and the number behind them per question where there is one."""

    scores: list[Score]
    answers: dict[tuple[str, str], dict[int, float]]
    """(task, metric) -> question -> value, for metrics that are a mean over questions."""


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    model_label: str = QUANTIZED,
) -> list[Score]:
    """Scores of `model` on `tasks`: see `answer_tasks`."""
    return answer_tasks(
        model,
        tokenizer,
        tasks,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        model_label=model_label,
    ).scores


@timed("tasks")
def answer_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    model_label: str = QUANTIZED,
) -> TaskRun:
    """Run lm-eval on a model in memory, where it is.

    `tasks` are `builtin_rolling`, `builtin_cloze`, names of lm-eval, or paths of task YAML files;
    `limit` is the number of documents per task, `max_length` the tokens per window. Raises
    DataError for an unknown task, a dataset that cannot be reached, and a window too short for an answer.
    """
    run = TaskRun([], {})
    if not tasks:
        return run
    with _quiet():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        loaded = load_tasks(tasks)
        harness = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
        )
        for task in track(loaded, f"tasks ({model_label})", len(loaded)):
            try:
                results = evaluate(harness, task, limit=limit, bootstrap_iters=_BOOTSTRAP)
            except AssertionError as error:  # lm-eval's word for a text that does not fit
                raise DataError(
                    f"lm-eval stopped in one of {', '.join(tasks)} ({first_line(error)}): most likely an answer "
                    f"is longer than a window of {max_length} tokens. Raise evaluation.sequence_length, or "
                    "leave the task out."
                ) from error
            _collect(results, model_label, run)
    return run


@timed("intervals")
def paired_changes(original: TaskRun, quantized: TaskRun) -> list[Score]:
    """Change of each mean metric on the questions that both models answered, with its interval.

    `<metric>_change` is quantized minus original; pairing takes out how hard the questions are.
    """
    rows = []
    for (task, metric), theirs in quantized.answers.items():
        ours = original.answers.get((task, metric), {})
        questions = sorted(ours.keys() & theirs.keys())
        if not questions:
            continue
        change = torch.tensor([theirs[q] - ours[q] for q in questions], dtype=torch.float64)
        rows.append(
            bootstrap_score(
                weighted_mean(change),
                resample_weights(len(questions)),
                task=task,
                metric=f"{metric}_change",
            )
        )
    return rows


def load_tasks(tasks: Sequence[str]) -> list[Any]:
    """lm-eval's loaded form of each distinct task; its large index is read only for its own names."""
    from lm_eval.tasks import TaskManager

    names = list(dict.fromkeys(tasks))
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if missing := next((name for name in files if not Path(name).expanduser().is_file()), None):
        raise DataError(f"there is no task file {missing}; check the path in evaluation.tasks")
    theirs = [name for name in names if name not in BUILTIN_TASKS and name not in files]
    manager = TaskManager(include_defaults=bool(theirs))
    for name in theirs:
        if name not in manager.task_index:
            close = nearest(name, [*BUILTIN_TASKS, *manager.all_tasks])
            raise DataError(
                f"unknown task {name!r}; nearest: {close}. Allowed: {', '.join(BUILTIN_TASKS)}, "
                "a task name of lm-eval, or the path of a task's .yaml file"
            )
    loaded = []
    for name in names:
        try:
            found = manager.load([builtin_task(name) or name])
        except Exception as error:  # hub, network and YAML errors share no base class
            raise DataError(_unloadable(name, error)) from error
        for task in found["tasks"].values():
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        loaded.append(found)
    return loaded


def _unloadable(name: str, error: Exception) -> str:
    reason = first_line(error)
    if name.endswith((".yaml", ".yml")):
        return f"cannot use the task file {name}: {type(error).__name__}: {reason}"
    return (
        f"cannot load task {name!r}: {reason}. Its dataset comes from the Hugging Face hub: connect "
        f"to a network (and unset HF_HUB_OFFLINE), or use {' and '.join(BUILTIN_TASKS)}"
    )


def _collect(results: Any, label: str, run: TaskRun) -> None:
    for task, found in results["results"].items():
        samples = results["samples"].get(task, [])
        for key, value in found.items():
            name, comma, kind = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            metric = name if kind == "none" else key
            values = {s["doc_id"]: s[name] for s in samples if s["filter"] == kind and name in s}
            if values and all(isinstance(v, tuple) for v in values.values()):
                run.scores.append(_rolling(list(values.values()), task, metric, label))
                continue
            if values and all(isinstance(v, bool | int | float) for v in values.values()):
                run.answers[task, metric] = {q: float(v) for q, v in values.items()}
            stderr = found.get(f"{name}_stderr,{kind}")
            spread = float(stderr) if isinstance(stderr, int | float) else math.nan
            low, high = value - NORMAL * spread, value + NORMAL * spread
            run.scores.append(Score(task, metric, float(value), spread, low, high, label))


def _rolling(values: list[tuple[float, float]], task: str, metric: str, label: str) -> Score:
    """Perplexity per word or byte, or bits per byte, from (log-likelihood, units) of each document."""
    logs, units = torch.tensor(values, dtype=torch.float64).unbind(dim=1)
    nats = weighted_ratio(-logs, units)
    bits = metric.startswith("bits")
    return bootstrap_score(
        (lambda w: nats(w) / math.log(2)) if bits else (lambda w: nats(w).exp()),
        resample_weights(len(values)),
        task=task,
        metric=metric,
        model=label,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars, prints and chatter away; what matters is raised or scored."""
    import tqdm

    show = tqdm.tqdm.__init__

    def hide(self: Any, *arguments: Any, **options: Any) -> None:
        show(self, *arguments, **{**options, "disable": True})

    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    tqdm.tqdm.__init__ = hide
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}),
        ):
            yield
    finally:
        tqdm.tqdm.__init__ = show
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
