"""Score a compressed model against its original: perplexity, divergence and tasks in one table."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from alphaquant.clock import note_work
from alphaquant.config import EvaluationConfig
from alphaquant.evaluation.activations import asked_activations, simulated_activations
from alphaquant.evaluation.baseline import Baseline
from alphaquant.evaluation.fidelity import compare
from alphaquant.evaluation.harness import TaskRun, answer_tasks, paired_changes
from alphaquant.evaluation.heldout import heldout_windows, window_length, write_baseline
from alphaquant.evaluation.predictions import Predictions, WholeModel
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.scores import ORIGINAL, QUANTIZED, Score, scores_table
from alphaquant.evaluation.streamed import streamed_predictions
from alphaquant.floor import Tokens, predicted
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model, load_whole
from alphaquant.models.packed import open_checkpoint
from alphaquant.progress import reporter

if TYPE_CHECKING:
    import pandas as pd


def evaluate_checkpoint(
    original: Checkpoint,
    compressed: Path,
    config: EvaluationConfig,
    *,
    device: torch.device,
    batch_size: int,
    activations: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The rows of `scores.parquet`: the original is evaluated, then the checkpoint in `compressed`, one at a time.

    `activations` as in `score_checkpoint`. Raises what that and `original_answers` do.
    """
    room = Room(device, batch_size)
    baseline = answers = None
    with tempfile.TemporaryDirectory(prefix="alphaquant-") as scratch:
        if config.tasks:
            answers = original_answers(
                original, config.tasks, config.sequence_length, config.limit, room
            )
        if config.perplexity:
            windows = heldout_windows(
                original, config.dataset, config.sequence_length, config.limit
            )
            write_baseline(original, windows, Path(scratch), room)
            baseline = Baseline(Path(scratch))
        return score_checkpoint(
            original, compressed, config, baseline, answers, room, activations=activations
        )


def original_answers(
    original: Checkpoint,
    tasks: Sequence[str],
    sequence_length: int,
    limit: int | None,
    room: Room,
) -> TaskRun:
    """What the original scores on `tasks`. Raises DataError as `answer_tasks` does, ConfigError where there is no
    room for the whole model.
    """
    room.check_tasks(original)
    model = load_whole(original, room.device)
    return _answers(model, original, tasks, sequence_length, limit, room, ORIGINAL)


def score_checkpoint(
    original: Checkpoint,
    compressed: Path,
    config: EvaluationConfig,
    baseline: Baseline | None,
    answers: TaskRun | None,
    room: Room,
    *,
    activations: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The rows of `scores.parquet`, with the checkpoint in `compressed` alone in memory, or one block of it.

    `baseline` and `answers` are what the original makes of the windows and of the tasks of `config`; without them
    there are no such scores. `activations` (format by linear name) are simulated in the compressed model; None means
    those that the checkpoint asks its consumer for. Raises ModelError for a checkpoint of another vocabulary,
    ConfigError for tasks where there is no room for the whole model.
    """
    if activations is None:
        activations = asked_activations(
            compressed, original.trust_remote_code, original.architecture.kind
        )
    if activations:
        formats = ", ".join(sorted(set(activations.values())))
        reporter().note(f"activations of {len(activations)} linears are simulated in {formats}")
    if answers is not None:
        room.check_tasks(original)
    scores: list[Score] = []
    options = (original.trust_remote_code, original.architecture.kind)
    if not room.holds(original):
        if baseline is not None:
            checkpoint = open_checkpoint(compressed, *options)
            found = streamed_predictions(
                checkpoint, baseline.windows, room, f"blocks ({QUANTIZED})", activations=activations
            )
            scores += _fidelity(original, baseline, found, room)
        return scores_table(scores)
    model = load_model(compressed, room.device, options[0], architecture=options[1])
    with contextlib.ExitStack() as stack:
        stack.enter_context(simulated_activations(model, original.architecture, activations))
        if baseline is not None:
            windows = baseline.windows
            size = room.batch(original, windows.shape[1])
            whole = WholeModel(model, room.device, size)
            found = whole.predictions(windows, "fidelity")
            scores += _fidelity(original, baseline, found, room)
        if answers is not None:
            theirs = _answers(
                model, original, config.tasks, config.sequence_length, config.limit, room, QUANTIZED
            )
            scores += [*answers.scores, *theirs.scores, *paired_changes(answers, theirs)]
    return scores_table(scores)


def _fidelity(
    original: Checkpoint, baseline: Baseline, found: Predictions, room: Room
) -> list[Score]:
    seen = Tokens.of(original, baseline.windows.numel(), half=room.device.type == "cuda")
    note_work(lambda: predicted(original, seen))
    return compare(baseline.predictions(original, room.device), found, baseline.windows)


def _answers(
    model: nn.Module,
    original: Checkpoint,
    tasks: Sequence[str],
    sequence_length: int,
    limit: int | None,
    room: Room,
    label: str,
) -> TaskRun:
    length = window_length(original, sequence_length)
    return answer_tasks(
        model,
        original.tokenizer,
        tasks,
        limit=limit,
        batch_size=room.batch(original, length, whole_logits=True),
        max_length=length,
        model_label=label,
    )
