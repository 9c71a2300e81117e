"""Stage generate: a share of the calibration windows written by the model itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.progress import reporter
from tasks.inputs import TOKENS, load_tokens, open_model
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("generate", gpu=True)
def generate(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    tokens: ArtifactRef,
    share: float,
    seed: int,
    execution: ExecutionConfig,
) -> None:
    """Write `tokens.safetensors`: int64 [samples, length], windows of a text with a share of them, evenly spread, replaced."""
    from safetensors.torch import save_file

    from alphaquant.algorithms.generated import AT_ONCE, PIECE, replaced, written_windows

    checkpoint, windows = open_model(model), load_tokens(store, tokens)
    count, length = windows.shape
    places, room = replaced(count, share), room_of(execution)
    if places:
        room.check_writing(checkpoint)
        fitting = dataclasses.replace(room, batch_size=AT_ONCE).batch(checkpoint, PIECE)
        windows[places] = written_windows(
            checkpoint, len(places), length, seed, room.device, fitting
        )
    reporter().note(f"calibration.generated: the model wrote {len(places)} of {count} windows")
    save_file({"tokens": windows}, out / TOKENS)
