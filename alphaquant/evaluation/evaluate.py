"""Score a compressed model against its original: perplexity, divergence and tasks in one table."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alphaquant.clock import note_work
from alphaquant.config import EvaluationConfig
from alphaquant.evaluation.activations import asked_activations, simulated_activations
from alphaquant.evaluation.fidelity import compare
from alphaquant.evaluation.harness import answer_tasks, paired_changes
from alphaquant.evaluation.scores import ORIGINAL, QUANTIZED, Score, scores_table
from alphaquant.floor import Tokens, compared
from alphaquant.models.checkpoint import Checkpoint, check_vocabulary
from alphaquant.models.loading import load_model
from alphaquant.progress import reporter
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import evaluation_windows

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
    """The rows of `scores.parquet`, for the original and for the checkpoint in `compressed`.

    `activations` (format by linear name) are simulated in the compressed model; None means those that the checkpoint
    asks its consumer for.
    """
    if activations is None:
        activations = asked_activations(
            compressed, original.trust_remote_code, original.architecture.kind
        )
    scores: list[Score] = []
    first = load_model(original.path, device, original.trust_remote_code)
    second = load_model(
        compressed,
        device,
        original.trust_remote_code,
        architecture=original.architecture.kind,
    )
    length = min(config.sequence_length, original.context_length)
    with contextlib.ExitStack() as stack:
        if activations:
            formats = ", ".join(sorted(set(activations.values())))
            reporter().note(f"activations of {len(activations)} linears are simulated in {formats}")
            stack.enter_context(simulated_activations(second, original.architecture, activations))
        if config.perplexity:
            documents = load_documents(config.dataset, "evaluation")
            windows = evaluation_windows(original.tokenizer, documents, length, config.limit)
            check_vocabulary(original, windows)
            scores += compare(first, second, windows, batch_size=batch_size, device=device)
            seen = Tokens.of(original, windows.numel(), half=device.type == "cuda")
            note_work(lambda: compared(original, seen))
        if config.tasks:
            runs = [
                answer_tasks(
                    model,
                    original.tokenizer,
                    config.tasks,
                    limit=config.limit,
                    batch_size=batch_size,
                    max_length=length,
                    model_label=label,
                )
                for model, label in ((first, ORIGINAL), (second, QUANTIZED))
            ]
            scores += [score for run in runs for score in run.scores] + paired_changes(*runs)
    return scores_table(scores)
