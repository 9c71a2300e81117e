"""Stage baseline: held-out windows and what the original makes of them, which every plan is measured against."""

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


@stage("baseline", gpu=True)
def baseline(
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
    from alphaquant.evaluation.heldout import heldout_windows, write_baseline

    original = open_model(model)
    windows = heldout_windows(original, dataset, sequence_length, limit)
    write_baseline(original, windows, out, room_of(execution))
