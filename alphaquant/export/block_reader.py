"""What blocks hold, by the name of a linear or norm, one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import HEAD

Held = TypeVar("Held")


class BlockReader(Generic[Held]):
    """Reads a block when one of its names is asked for; shards follow block order, so each is read about once.

    A quantized head is one more unit behind the blocks.
    """

    def __init__(
        self, checkpoint: Checkpoint, units: int, read: Callable[[int], Mapping[str, Held]]
    ) -> None:
        """`read` gives what unit `index` of `units` holds by name, without `.weight`."""
        self._read = read
        blocks = range(min(units, checkpoint.blocks))
        self._block_of = {s.name: at for at in blocks for s in checkpoint.block_specs(at)}
        self._block_of |= {name: at for at in blocks for name in checkpoint.block_norms(at)}
        if units > checkpoint.blocks:
            self._block_of[HEAD] = checkpoint.blocks
        self._held: tuple[int, Mapping[str, Held]] = (-1, {})

    def get(self, name: str) -> Held | None:
        """What the block holds under a name; None for names outside of all, and where it holds nothing."""
        index = self._block_of.get(name)
        if index is None:
            return None
        if self._held[0] != index:
            self._held = (-1, {})  # or two blocks would be in memory while the next is read
            self._held = (index, self._read(index))
        return self._held[1].get(name)
