"""One block in memory: the last one is let go before the next is read."""

from __future__ import annotations

import weakref
from pathlib import Path

from alphaquant.export.block_reader import BlockReader
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import make_model


class Held:
    """Stands in for a tensor."""


def test_the_last_block_is_let_go_before_the_next_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", num_hidden_layers=3))
    norm = "model.layers.{}.input_layernorm"
    alive: list[weakref.ref[Held]] = []

    def read(index: int) -> dict[str, Held]:
        assert not [one for one in alive if one() is not None]
        held = Held()
        alive.append(weakref.ref(held))
        return {norm.format(index): held}

    reader = BlockReader(checkpoint, 3, read)
    for index in (0, 0, 1, 2):
        assert reader.get(norm.format(index)) is not None
        assert reader.get("model.norm") is None
    assert len(alive) == 3
