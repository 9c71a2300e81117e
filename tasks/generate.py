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

    from alphaquant.evaluation.generated import with_written

    windows = load_tokens(store, tokens)
    mixed = with_written(open_model(model), windows, share, seed, room_of(execution))
    save_file({"tokens": mixed}, out / TOKENS)
