"""Stage calibration: text to the token windows that show which inputs matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.progress import reporter
from tasks.inputs import TOKENS, open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from torch import Tensor

    from alphaquant.config import CalibrationConfig, ExecutionConfig
    from alphaquant.models.checkpoint import Checkpoint
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
    execution: ExecutionConfig,
) -> None:
    """Write `tokens.safetensors`: int64 [samples, length]. `files`, the text's digest, is for the key.

    The model runs only where windows are chosen by how they load its experts.
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
    if calibration.balance > 1:
        tokens = _balanced(checkpoint, tokens, calibration.samples, execution)
    save_file({"tokens": tokens}, out / TOKENS)


def _balanced(
    checkpoint: Checkpoint, pool: Tensor, samples: int, execution: ExecutionConfig
) -> Tensor:
    """The windows `[samples, length]` of a pool that load the experts most evenly."""
    from alphaquant.algorithms.balance import balanced_choice, expert_loads, idlest_share
    from alphaquant.models.device import compute_device

    if not any(spec.expert is not None for spec in checkpoint.specs):
        reporter().note(
            "calibration.balance: the model is dense, its windows are those drawn first"
        )
        return pool[:samples].contiguous()
    # with a pool, this runs in the run's own process, which may lack the pool's device
    device = compute_device("auto" if execution.where == "pool" else execution.device)
    loads = expert_loads(checkpoint, pool, device, execution.batch_size)
    chosen = balanced_choice(loads, min(samples, pool.shape[0]))
    reporter().note(
        f"calibration.balance: with {len(chosen)} of {pool.shape[0]} windows the idlest expert sees "
        f"{idlest_share(loads[chosen]):.2f} of an even load, with the first {len(chosen)} "
        f"{idlest_share(loads[:samples]):.2f}"
    )
    return pool[sorted(chosen)]  # in the order they were drawn, which is random
