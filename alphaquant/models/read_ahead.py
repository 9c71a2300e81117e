"""Reading ahead: a block's files while another block is computed, and the next tensors while one is on its way to a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.shard import Shard
from alphaquant.pinned import for_a_gpu

_READERS = 8
"""Threads that read for a GPU: one copies a few GB/s out of the system's memory, the bus takes tens."""
_AHEAD = 1 << 30
"""Bytes of the tensors that are read ahead, taken to be as large as the last one."""


def read_ahead(checkpoint: Checkpoint, block: int) -> None:
    """Ask the system for the tensors of a decoder block, into memory that is nobody's; returns at once.

    Does nothing for a model that lies in no file.
    """
    prefix = f"{checkpoint.architecture.blocks}.{block}."
    files = {e.file for name, e in checkpoint.entries.items() if name.startswith(prefix)}
    for file in files:
        if file.is_file():
            shard = Shard(file)
            for name in shard.entries:
                if name.startswith(prefix):
                    shard.want(name)


def in_order(
    read: Callable[[str], Tensor], names: Iterable[str], device: torch.device
) -> Iterator[Tensor]:
    """What `read` gives for each name, in order; for a GPU by several threads, a few tensors ahead of who takes them.

    What lies in a file as it is comes in pinned memory.
    """
    if device.type == "cpu":
        yield from map(read, names)
        return

    def fetch(name: str) -> Tensor:
        with for_a_gpu():
            return read(name)

    waiting, coming, ahead = deque(names), deque[Future[Tensor]](), 1
    with ThreadPoolExecutor(_READERS) as pool:
        while waiting or coming:
            while waiting and len(coming) <= ahead:
                coming.append(pool.submit(fetch, waiting.popleft()))
            tensor = coming.popleft().result()
            ahead = min(2 * _READERS, _AHEAD // max(tensor.nbytes, 1))
            yield tensor
