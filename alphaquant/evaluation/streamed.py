"""Predictions of a model that does not fit into memory: its blocks are read one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.evaluation.activations import round_inputs, rounded_inputs
from alphaquant.evaluation.predictions import Predictions
from alphaquant.evaluation.room import Room
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import HEAD
from alphaquant.models.streamed import last_hidden


@timed("forward")
def streamed_predictions(
    checkpoint: Checkpoint,
    windows: Tensor,
    room: Room,
    what: str,
    *,
    activations: Mapping[str, str] | None = None,
    weights: Callable[[int], Mapping[str, Tensor]] = lambda _: {},
    head: Tensor | None = None,
) -> Predictions:
    """What a checkpoint, packed or not, makes of int64 `[windows, length]`, computed at once; `what` names the progress.

    `activations` (format by linear name) are simulated. `weights` of a block, by linear, and a `head`
    `[vocabulary, hidden]` replace what the checkpoint holds. Raises ConfigError where `room` has not even one window's.
    """
    asked = activations or {}
    blocks = {spec.name: spec.block for spec in checkpoint.specs if spec.name in asked}

    def around(block: nn.Module, index: int) -> contextlib.AbstractContextManager[None]:
        names = [name for name, where in blocks.items() if where == index]
        modules = {name: model.linear(block, index, name) for name in names}
        return rounded_inputs(modules, asked)

    model = BlockModel(checkpoint, room.device, compute_dtype(room.device))
    size = room.batch_by_block(checkpoint, windows.shape[0], windows.shape[1])
    batches = last_hidden(model, windows.split(size), what, weights, around)
    output = model.head(head)
    if HEAD in asked:
        round_inputs(output.output, HEAD, asked[HEAD])
    return Predictions([window for batch in batches for window in batch], output)
