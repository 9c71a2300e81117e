"""Dense export: the original folder with the quantized values in the original's dtype; any consumer loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from alphaquant.algorithms.quantized_block import block_weights, quantized_head, with_own_head
from alphaquant.export.block_reader import BlockReader
from alphaquant.export.folder import copy_small_files, shards, write_index, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.fused_tensors import assembled
from alphaquant.models.linear import HEAD
from alphaquant.models.untied import UntiedCheckpoint
from alphaquant.progress import track


def export_dense(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Mapping[str, Tensor],
    out: Path,
) -> None:
    """Write a checkpoint folder under the original tensor names and shards, one block in memory.

    `routers` (by linear name) replace the kept ones. Every file that is no weight is copied; MXFP4 and FP8 of
    the original become bf16. A quantized head that was tied goes into the shard of the embedding, and config.json says
    that it is tied no longer.
    """
    copy_small_files(checkpoint.path, out)
    checkpoint = with_own_head(checkpoint, blocks)
    layout = checkpoint.layout
    if layout.decoded or isinstance(checkpoint, UntiedCheckpoint):  # other tensors than before
        write_json(out / "config.json", checkpoint.raw_config)
        write_index(checkpoint.path, out, layout.files)

    def unit(at: int) -> Mapping[str, Tensor]:
        if at < checkpoint.blocks:
            return block_weights(checkpoint, at, blocks[at])
        head = quantized_head(checkpoint, blocks)
        return {} if head is None else {HEAD: head}

    reader = BlockReader(checkpoint, len(blocks), unit)

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
