"""Stage calibration: text to the token windows that show which inputs matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.progress import reporter
from tasks.inputs import TOKENS, open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import CalibrationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("calibration")
def calibration(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    calibration: CalibrationConfig,
    files: dict[str, str],
) -> None:
    """Write `tokens.safetensors`: int64 [samples, length]. `files`, the text's digest, is for the key.

    With `calibration.balance` there are up to so many times more windows, for the stage balance to choose from.
    """
    from safetensors.torch import save_file

    from alphaquant.models.checkpoint import check_vocabulary
    from alphaquant.text.sources import load_documents
    from alphaquant.text.windows import calibration_tokens

    checkpoint = open_model(model)
    length = min(calibration.sequence_length, checkpoint.context_length)
    if length < calibration.sequence_length:
        reporter().note(
            f"calibration windows are {length} tokens long: the model's context ends there"
        )
    tokens = calibration_tokens(
        checkpoint.tokenizer,
        load_documents(calibration.dataset, "calibration"),
        calibration.samples,
        length,
        calibration.seed,
        calibration.balance,
    )
    check_vocabulary(checkpoint, tokens)
    save_file({"tokens": tokens}, out / TOKENS)
