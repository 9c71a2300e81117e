"""The files of a model folder that are no weights, and the index of its shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphaquant.models.tensors import TensorEntry

INDEX = "model.safetensors.index.json"
PROGRAM = __name__.partition(".")[0]
"""What checkpoints say made them. Spelled out, the name would count as an import of the whole library."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_WEIGHT_INDEX = ".bin.index.json"
_NESTED_SUFFIXES = (".jinja",)


def copy_small_files(source: Path, out: Path) -> None:
    """Copy every file of a model folder that holds no weights, and from its folders chat templates."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
        nested = len(relative.parts) > 1 and path.suffix not in _NESTED_SUFFIXES
        weights = path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(_WEIGHT_INDEX)
        if path.is_file() and not (hidden or nested or weights):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / relative)


def shards(entries: Mapping[str, TensorEntry]) -> dict[Path, dict[str, TensorEntry]]:
    """The tensors of every file, files by name, tensors in the order of `entries`."""
    found: dict[Path, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        found.setdefault(entry.file, {})[name] = entry
    return dict(sorted(found.items()))


def write_index(source: Path, out: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Rewrite the index of `source` with the tensors of `entries`; a model of one file has none."""
    path = source / INDEX
    if not path.is_file():
        return
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] = {
        name: file.name for file, held in shards(entries).items() for name in sorted(held)
    }
    index.get("metadata", {}).pop("total_size", None)  # other tensors, other bytes
    write_json(out / INDEX, index)


def write_json(path: Path, value: Any) -> None:
    """One JSON file, indented, with a last line end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
