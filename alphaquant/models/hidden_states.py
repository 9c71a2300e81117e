"""Hidden states between blocks: batches in memory, or in a file where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from alphaquant.models.tensor_file import TensorFile, Waiting

_CPU = torch.device("cpu")


class HiddenStates:
    """Batches `[windows, length, hidden]` where they were made, each replaced by what the next block makes of it."""

    def __init__(self, batches: Iterable[Tensor], file: TensorFile | None = None) -> None:
        """Takes the batches one by one; with a `file` they wait there."""
        self._batches: list[Tensor | Waiting] = []
        for batch in batches:
            self._batches.append(file.keep(batch.to(_CPU)) if file else batch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._batches:
            yield batch() if isinstance(batch, Waiting) else batch

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Batches, and which windows each has."""
        begin = 0
        for batch in self:
            yield slice(begin, begin + len(batch)), batch
            begin += len(batch)

    def advance(self, run: Callable[[Tensor], Tensor]) -> None:
        """Replace each batch by what `run` makes of it, of the same shape and dtype."""
        for at, batch in enumerate(self):
            old, new = self._batches[at], run(batch)
            if isinstance(old, Waiting):
                old.file.write(new.to(_CPU), old.begin)
            else:
                self._batches[at] = new

    def together(self) -> Tensor:
        """All of them `[windows, length, hidden]`; those in memory become parts of it, so that nothing is held twice."""
        sizes = [len(batch) for batch in self]
        whole = torch.cat(list(self))
        if not any(isinstance(batch, Waiting) for batch in self._batches):
            self._batches = list(whole.split(sizes))
        return whole

    def clear(self) -> None:
        """Let go of the batches."""
        self._batches.clear()
