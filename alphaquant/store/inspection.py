"""What is wrong with an artifact that lies in a bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphaquant.store.artifacts import MANIFEST, ArtifactRef
from alphaquant.store.bucket import Bucket, Entry
from alphaquant.store.parallel import side_by_side


def folder_of(ref: ArtifactRef) -> str:
    """Where an artifact lies in a bucket."""
    return f"objects/{ref.kind}/{ref.digest[:2]}/{ref.digest}"


def size_problem(entry: Mapping[str, Any], files: Mapping[str, Entry]) -> str | None:
    """What a listing says against one file of a manifest."""
    name = entry["path"]
    if name not in files:
        return f"damaged: {name} is missing"
    if files[name].size != entry["size"]:
        return f"damaged: {name} has {files[name].size} bytes instead of {entry['size']}"
    return None


def content_problem(
    bucket: Bucket, ref: ArtifactRef, entries: Sequence[Mapping[str, Any]]
) -> str | None:
    """What every file's content, read for this, says against the artifact. Raises StoreError."""

    def problem(item: tuple[str, str]) -> str | None:
        name, digest = item
        found = bucket.sha256(f"{folder_of(ref)}/{name}")
        if found is None:
            return f"damaged: {name} is missing"
        return None if found == digest else f"damaged: the content of {name} was changed"

    items = [(entry["path"], entry["sha256"]) for entry in entries]
    found = side_by_side(problem, [(MANIFEST, ref.digest), *items])
    return next((text for text in found if text), None)


def first_difference(folder: Path, entries: Sequence[Mapping[str, Any]]) -> str:
    """The first file of a manifest that is not what the manifest in `folder` says."""
    sealed = json.loads((folder / MANIFEST).read_bytes())
    found = {entry["path"]: entry["sha256"] for entry in sealed}
    different = (entry["path"] for entry in entries if found.get(entry["path"]) != entry["sha256"])
    return str(next(different))
