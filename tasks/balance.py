"""Stage balance: of the windows that were drawn, those that let experts see about equally many tokens."""

from __future__ import annotations

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


@stage("balance", gpu=True)
def balance(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    tokens: ArtifactRef,
    samples: int,
    execution: ExecutionConfig,
) -> None:
    """Write `tokens.safetensors`: int64 [samples, length], in the order in which they were drawn, which is random.

    Of a dense model, and where no more windows were drawn than are wanted, those are the first ones.
    """
    from safetensors.torch import save_file

    from alphaquant.algorithms.balance import balanced_choice, expert_loads, idlest_share
    from alphaquant.evaluation.passes import BALANCING

    checkpoint, pool = open_model(model), load_tokens(store, tokens)
    chosen = list(range(min(samples, pool.shape[0])))
    if not any(spec.expert is not None for spec in checkpoint.specs):
        reporter().note(
            "calibration.balance: the model is dense, its windows are those drawn first"
        )
    elif pool.shape[0] > samples:
        room = room_of(execution)
        size = room.batch_by_block(checkpoint, pool.shape[0], pool.shape[1], BALANCING)
        loads = expert_loads(checkpoint, pool, room.device, size)
        first, chosen = chosen, sorted(balanced_choice(loads, samples))
        reporter().note(
            f"calibration.balance: with {samples} of {pool.shape[0]} windows the idlest expert sees "
            f"{idlest_share(loads[chosen]):.2f} of an even load, with the first {samples} "
            f"{idlest_share(loads[first]):.2f}"
        )
    save_file({"tokens": pool[chosen]}, out / TOKENS)
