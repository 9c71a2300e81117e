"""What a block's attention hands to its output projection: kept, so that passes behind the pass that made it need not attend again.

Whatever becomes of the output projection and of all behind it, queries, keys and values stay what they are. So attention's answer is
the projection of what is kept, and that is found by trying: a block's code is asked, not its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.hooks import given, hooked, remember
from alphaquant.models.joins import TOKENS, rounding
from alphaquant.models.linear import ATTENTION_ROLES


@dataclass
class Attended:
    """What the output projection of one block reads of all windows, once somebody has kept it."""

    attention: str
    """The module that need not run, by its path in the block."""
    projection: str
    """Its output projection, likewise."""
    others: int | None
    """How many things the module returns besides, which nobody reads; None where it returns a tensor alone."""
    windows: int
    width: int
    """Channels of what is kept."""
    _kept: Tensor | None = field(init=False, default=None, repr=False)  # [windows, length, width]
    _missing: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._missing = self.windows

    @property
    def whole(self) -> bool:
        """Whether all windows were kept."""
        return not self._missing

    def inside(self, at: str | None) -> bool:
        """Whether a module by its path in the block is run by attention alone."""
        return at is not None and at.startswith(f"{self.attention}.")

    def keep(self, part: slice, read: Tensor) -> None:
        """Keep what the projection reads `[windows, length, width]` of a part of the windows, each of which is kept once."""
        if self._kept is None:
            self._kept = read.new_empty(self.windows, *read.shape[1:])
        self._kept[part] = read
        self._missing -= len(read)

    @contextlib.contextmanager
    def recalled(self, block: nn.Module, part: slice) -> Iterator[None]:
        """While open, attention answers a pass of these windows from what was kept; hooks run all the same."""
        assert self._kept is not None, "nothing was kept"
        module = block.get_submodule(self.attention)
        answer = partial(self._answer, block.get_submodule(self.projection), self._kept[part])
        with patch.object(module, "forward", answer):
            yield

    def recalling(
        self, block: nn.Module, run: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """`run` for batches `[windows, length, hidden]` of all windows, one after the other."""
        begin = 0

        def recall(batch: Tensor) -> Tensor:
            nonlocal begin
            part = slice(begin, begin + len(batch))
            begin += len(batch)
            with self.recalled(block, part):
                return run(batch)

        return recall

    def _answer(self, projection: nn.Module, read: Tensor, *_: Any, **__: Any) -> Any:
        found = projection(read)
        return found if self.others is None else (found, *[None] * self.others)


@torch.no_grad()
def attended(model: BlockModel, block: nn.Module, index: int, hidden: Tensor) -> Attended | None:
    """What could be kept of a block that `hidden` `[windows, length, hidden]` reaches; None where its code has other ways.

    Its first tokens are used to look whether what is around the output projection answers with its output, and all else unread.
    """
    specs = model.checkpoint.block_specs(index)
    names = {module: name for name, module in block.named_modules()}
    paths = {spec: names[model.linear(block, index, spec.name)] for spec in specs}
    outputs = [spec for spec in specs if spec.role == "o"]
    path = paths[outputs[0]].rpartition(".")[0] if len(outputs) == 1 else ""
    # a linear inside that is not known for one of attention's may be solved later, as a gate of its outputs is
    inside = [spec for spec in specs if paths[spec].startswith(f"{path}.")]
    if not path or any(spec.role not in ATTENTION_ROLES for spec in inside):
        return None
    sample, answers = hidden[:1, :TOKENS], dict[nn.Module, Any]()
    around, linear = block.get_submodule(path), block.get_submodule(paths[outputs[0]])
    with hooked([linear, around], remember(answers)), given({"o": linear}) as seen:
        expected = model.run(block, index, sample)
    answer, others = answers.get(around), None
    if isinstance(answer, tuple):
        answer, others = answer[0], len(answer) - 1
    if answer is not answers.get(linear) or seen["o"].shape[:2] != sample.shape[:2]:
        return None
    found = Attended(path, paths[outputs[0]], others, 1, seen["o"].shape[-1])
    found.keep(slice(1), seen["o"])
    try:
        with found.recalled(block, slice(1)):
            off = (model.run(block, index, sample) - expected).float()
    except TypeError:  # it computes with what is None here
        return None
    added = (expected - sample.to(expected.device)).float()
    allowed = rounding(expected.dtype) * torch.linalg.vector_norm(added)
    unread = bool(torch.linalg.vector_norm(off) <= allowed)
    return replace(found, windows=len(hidden)) if unread else None
