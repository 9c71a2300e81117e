"""A forward pass in the memory of one block: hidden states of all windows go through one block after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import expert_choices
from alphaquant.progress import track


def last_hidden(
    model: BlockModel,
    batches: Sequence[Tensor],  # [windows, length] each
    what: str = "original block",
    weights: Callable[[int], Mapping[str, Tensor]] = lambda _: {},
    around: Callable[[nn.Module, int], contextlib.AbstractContextManager[None]] = (
        lambda *_: contextlib.nullcontext()
    ),
) -> list[Tensor]:
    """The normed last hidden states `[windows, length, hidden]` of each batch, on the CPU.

    `weights` of a block, by linear, replace its own; `around` is open while a block, of that index, computes.
    """
    hidden = [model.embed(batch, batch.shape[0])[0].cpu() for batch in batches]
    model.release_embedding()
    for index in track(range(model.checkpoint.blocks), what, model.checkpoint.blocks):
        block = model.block(index, weights(index))
        with around(block, index):
            for at, out in enumerate(model.advance(block, index, hidden)):
                hidden[at] = out
        del block  # or two would be in memory while the next is loaded
    with torch.no_grad():
        for at, batch in enumerate(hidden):
            hidden[at] = model.final_norm(batch.to(model.device)).cpu()
    return hidden


def last_hidden_and_choices(
    model: BlockModel,
    batches: Sequence[Tensor],  # [windows, length] each
    routers: Mapping[int, LinearSpec],
    what: str = "original block",
) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
    """`last_hidden`, and by block the experts that its router in `routers` chooses, `[tokens, k]` of each batch, sorted."""
    choices: dict[int, list[Tensor]] = {}

    @contextlib.contextmanager
    def watching(block: nn.Module, index: int) -> Iterator[None]:
        spec = routers.get(index)
        with expert_choices([model.linear(block, index, spec.name)] if spec else []) as seen:
            yield
        if spec:
            choices[index] = seen[0]

    return last_hidden(model, batches, what, around=watching), choices
