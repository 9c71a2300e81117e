"""Reading ahead: the system fetches a block's files while another block is computed, into memory that is nobody's."""

from __future__ import annotations

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.shard import Shard


def read_ahead(checkpoint: Checkpoint, block: int) -> None:
    """Ask for the tensors of a decoder block; returns at once. Does nothing for a model that lies in no file."""
    prefix = f"{checkpoint.architecture.blocks}.{block}."
    files = {e.file for name, e in checkpoint.entries.items() if name.startswith(prefix)}
    for file in files:
        if file.is_file():
            shard = Shard(file)
            for name in shard.entries:
                if name.startswith(prefix):
                    shard.want(name)
