"""What a block of the original has where it shows what the same block lacks behind quantized ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.hooks import given
from alphaquant.models.joins import TOKENS, WRITERS, Place, experts_by_part, handed, joins
from alphaquant.models.linear import LinearSpec


@dataclass(frozen=True)
class Original:
    """What the original's block has of all windows where it is compared."""

    places: Mapping[str, Place]
    """By input key."""
    there: Mapping[str | None, Tensor]
    """`[windows, length, width]` by `Place.at`, its answer among them."""

    @property
    def answers(self) -> Tensor:
        """What it hands on `[windows, length, hidden]`."""
        return self.there[None]


@torch.no_grad()
def places(
    model: BlockModel, block: nn.Module, index: int, specs: Sequence[LinearSpec], hidden: Tensor
) -> dict[str, Place]:
    """Where it shows what each of the linears `specs` lacks, by input key: where it joins the stream, else in what it reads.

    Readers of one tensor have one place. Left out is what reads more than the stream is wide, and the inside of experts.
    `hidden` `[windows, length, hidden]` reaches the block; its first tokens are used.
    """
    sample = hidden[:1, :TOKENS].to(model.device)
    found = joins(model, block, index, specs, sample)
    inputs, fused = handed(model, block, index, sample), experts_by_part(block)
    names = {module: name for name, module in block.named_modules()}
    for spec in specs:
        inside = spec.expert is not None and spec.role in WRITERS
        if spec.input_key in found or spec.cols > sample.shape[-1] or inside:
            continue
        module = model.linear(block, index, spec.name)
        reader = module if spec.expert is None else fused.get(module)
        if reader is not None and (read := inputs.get(names[reader])) is not None:
            first = next(at for at, x in inputs.items() if torch.equal(x, read))
            found[spec.input_key] = Place(first)
    return found


def watch(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    hidden: Tensor,
    batch_size: int,
) -> Original:
    """Run the original's block on `hidden` `[windows, length, hidden]`, and keep what will tell what `specs` lack."""
    shown = places(model, block, index, specs, hidden) if specs else {}
    points = {at: block.get_submodule(at) for p in shown.values() if (at := p.at) is not None}
    there: dict[str | None, Tensor] = {None: torch.empty_like(hidden)}
    for start in range(0, len(hidden), batch_size):
        part = slice(start, start + batch_size)
        with given(points) as seen:
            there[None][part] = model.outputs(block, index, hidden[part])
        for at, x in seen.items():
            if at not in there:
                there[at] = x.new_empty(*hidden.shape[:2], x.shape[-1], device=hidden.device)
            there[at][part] = x.reshape(*hidden[part].shape[:2], -1)
    return Original(shown, there)
