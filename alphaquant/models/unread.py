"""Running a decoder block for what its linears see: whatever nobody looks at is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.linear import LinearSpec


@contextlib.contextmanager
def unread_left_out(
    model: BlockModel, block: nn.Module, index: int, specs: Sequence[LinearSpec]
) -> Iterator[None]:
    """While open, zeros stand for what no input of `specs` depends on: outputs of down projections, of experts that none
    of `specs` is part of, and of experts' linears where nobody looks at what down reads. They only join the stream behind all
    that is looked at, and the block's own output is then of no use. Hooks run all the same.
    """
    wanted = {spec.expert for spec in specs}
    inner = any(spec.role == "down" for spec in specs)
    left_out: set[nn.Module] = set()
    for spec in model.checkpoint.block_specs(index):
        if spec.expert is not None and spec.expert not in wanted:
            left_out.add(model.expert(block, index, spec.name))
        elif spec.role == "down" or (spec.expert is not None and not inner):
            left_out.add(model.linear(block, index, spec.name))
    try:
        for module in left_out:
            module.forward = _zeros(module)
        yield
    finally:
        for module in left_out:
            del module.forward  # or it would hide the class's own


def _zeros(module: nn.Module) -> Callable[..., Tensor]:
    """As wide as the outputs of a linear; an expert's are as its inputs."""
    weight = getattr(module, "weight", None)

    def forward(x: Tensor, *_: Any) -> Tensor:
        return x.new_zeros(*x.shape[:-1], x.shape[-1] if weight is None else weight.shape[0])

    return forward
