"""Stage teacher: held-out windows and what the original makes of them, which every trial is held against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench

HIDDEN = "hidden.safetensors"


@stage("teacher", gpu=True)
def teacher(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    dataset: str,
    sequence_length: int,
    limit: int | None,
    files: dict[str, str],
    execution: ExecutionConfig,
) -> None:
    """Write `hidden.safetensors`: windows int64 `[windows, length]`, hidden `[windows, length, hidden]`, and
    loss `[windows]`, the original's. `files`, the digest of the text that `dataset` names, is for the key.
    """
    from safetensors.torch import save_file

    from alphaquant.evaluation.ruler import Ruler
    from alphaquant.models.checkpoint import check_vocabulary
    from alphaquant.models.device import compute_device
    from alphaquant.text.sources import load_documents
    from alphaquant.text.windows import evaluation_windows

    original = open_model(model)
    documents = load_documents(dataset, "evaluation")
    length = min(sequence_length, original.context_length)
    windows = evaluation_windows(original.tokenizer, documents, length, limit)
    check_vocabulary(original, windows)
    ruler = Ruler(original, windows, compute_device(execution.device), execution.batch_size)
    hidden = ruler.hidden_states()
    save_file(
        {"windows": windows, "hidden": hidden.contiguous(), "loss": ruler.measure().loss},
        out / HIDDEN,
    )
