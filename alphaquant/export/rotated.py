"""A rotated model as an ordinary folder: its weights turned, everything else as it was."""

from __future__ import annotations

from pathlib import Path

from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.export.folder import copy_small_files, shards, write_index, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.fused_tensors import assembled
from alphaquant.progress import track


def export_rotated(checkpoint: RotatedCheckpoint, out: Path) -> None:
    """Write the turned weights in the original's shards, one tensor in memory at a time.

    The head of a model that was tied goes into the shard of the embedding.
    """
    copy_small_files(checkpoint.path, out)
    write_json(out / "config.json", checkpoint.raw_config)
    layout = checkpoint.layout
    write_index(checkpoint.path, out, layout.files)
    files = shards(layout.files)
    for file in track(files, "shard", len(files)):
        write_safetensors(
            out / file.name, files[file], lambda name: assembled(layout, name, checkpoint.tensor)
        )
