"""A rotated model as an ordinary folder: its weights turned, everything else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphaquant.algorithms.rotation import RotatedCheckpoint, best_seed, peak_ratio
from alphaquant.config import RotationConfig
from alphaquant.export.folder import copy_small_files, shards, write_index, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.fused_tensors import assembled
from alphaquant.progress import reporter, track


def write_rotated(original: Checkpoint, config: RotationConfig, out: Path) -> dict[str, Any]:
    """Make the folder `out` of a model that computes what the original does; says and returns what that did to the largest weights.

    Raises ModelError for a model that a rotation would change.
    """
    chosen = best_seed(original, config)
    rotated = RotatedCheckpoint(original, chosen)
    out.mkdir()
    export_rotated(rotated, out)
    facts = {
        "seed": chosen.seed,
        "block": rotated.residual.block,
        "hadamard": rotated.residual.is_hadamard,
        "heads": rotated.turns_heads,
        "peak_before": peak_ratio(original),
        "peak_after": peak_ratio(Checkpoint(out)),
    }
    reporter().note(
        "rotation: the largest weight of 128 goes from {peak_before:.2f} to {peak_after:.2f} times the root mean "
        "square (Gaussian weights: 2.85)".format(**facts)
    )
    return facts


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
