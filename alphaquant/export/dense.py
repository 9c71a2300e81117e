"""Dense export: the original folder with the quantized values in the original's dtype; any consumer loads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from alphaquant.algorithms.quantized_block import block_weights
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.progress import track

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def export_dense(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Mapping[str, Tensor],
    out: Path,
) -> None:
    """Write a checkpoint folder under the original tensor names and shards, one block in memory.

    `routers` (by linear name) replace the kept ones. Every file that is no weight is copied.
    """
    copy_small_files(checkpoint.path, out)
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    quantized = _BlockReader(checkpoint, blocks)

    def value_of(name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        value = routers.get(linear)
        if value is None:
            value = quantized.get(linear)
        return checkpoint.tensor(name) if value is None else value

    for file in track(files, "shard", len(files)):
        entries = {name: e for name, e in checkpoint.entries.items() if e.file == file}
        write_safetensors(out / file.name, entries, value_of)


class _BlockReader:
    """Weights by linear name; holds one block at a time, since shards follow block order."""

    def __init__(self, checkpoint: Checkpoint, blocks: Sequence[Path]) -> None:
        self._checkpoint, self._blocks = checkpoint, blocks
        self._block_of = {s.name: s.block for s in checkpoint.specs if s.block is not None}
        norms = ((name, at) for at in range(len(blocks)) for name in checkpoint.block_norms(at))
        self._block_of |= dict(norms)
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})

    def get(self, linear: str) -> Tensor | None:
        index = self._block_of.get(linear)
        if index is None:
            return None
        if self._held[0] != index:
            self._held = (index, block_weights(self._checkpoint, index, self._blocks[index]))
        return self._held[1].get(linear)  # a norm is there if it was moved


def copy_small_files(source: Path, out: Path) -> None:
    """Copy every file of a model folder that holds no weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
