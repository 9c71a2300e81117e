"""Stage generate: a share of the calibration windows written by the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

    from alphaquant.algorithms.generated import with_written

    checkpoint, room = open_model(model), room_of(execution)
    at_once = room.pieces(checkpoint)
    windows = with_written(
        checkpoint, load_tokens(store, tokens), share, seed, room.device, at_once
    )
    save_file({"tokens": windows}, out / TOKENS)
