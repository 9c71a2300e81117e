"""A rotated model as an ordinary folder: its weights turned, everything else as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.export.dense import copy_small_files
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.progress import track

_INDEX = "model.safetensors.index.json"


def export_rotated(checkpoint: RotatedCheckpoint, out: Path) -> None:
    """Write the turned weights in the original's shards, one tensor in memory at a time.

    The head of a model that was tied goes into the shard of the embedding.
    """
    copy_small_files(checkpoint.path, out)
    _write_json(out / "config.json", checkpoint.raw_config)
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    if (out / _INDEX).is_file():
        _write_json(out / _INDEX, _index(checkpoint, files, out / _INDEX))
    for file in track(files, "shard", len(files)):
        entries = {name: e for name, e in checkpoint.entries.items() if e.file == file}
        write_safetensors(out / file.name, entries, checkpoint.tensor)


def _index(checkpoint: RotatedCheckpoint, files: Sequence[Path], path: Path) -> dict[str, Any]:
    """The index of the shards with every tensor; what it says besides stays."""
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] = {
        name: entry.file.name
        for file in files
        for name, entry in sorted(checkpoint.entries.items())
        if entry.file == file
    }
    index.get("metadata", {}).pop("total_size", None)  # a head may have come on top
    return index


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
