"""Dense export: the original folder with the quantized values in the original's dtype; any consumer loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from alphaquant.algorithms.quantized_block import block_weights
from alphaquant.export.block_reader import BlockReader
from alphaquant.export.folder import copy_small_files, shards, write_index, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.fused_tensors import assembled
from alphaquant.progress import track


def export_dense(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Mapping[str, Tensor],
    out: Path,
) -> None:
    """Write a checkpoint folder under the original tensor names and shards, one block in memory.

    `routers` (by linear name) replace the kept ones. Every file that is no weight is copied; MXFP4 of the
    original becomes bf16.
    """
    layout = checkpoint.layout
    copy_small_files(checkpoint.path, out)
    if layout.mxfp4:  # other names and other dtypes than before
        write_json(out / "config.json", checkpoint.raw_config)
        write_index(checkpoint.path, out, layout.files)
    reader = BlockReader(checkpoint, lambda at: block_weights(checkpoint, at, blocks[at]))

    def value_of(name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        value = routers.get(linear)
        if value is None:
            value = reader.get(linear)
        return checkpoint.tensor(name) if value is None else value

    files = shards(layout.files)
    for file in track(files, "shard", len(files)):
        write_safetensors(
            out / file.name, files[file], lambda name: assembled(layout, name, value_of)
        )
