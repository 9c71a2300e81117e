"""Tensors that files hold in one piece although they are many linears: all experts of a block, gate and up in turns.

Everybody else sees one tensor per expert and projection; reading cuts it out, export puts the whole together
again. Imports no torch: `alphaquant plan` reads shapes here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphaquant.errors import FormatError, ModelError
from alphaquant.models.architecture import Architecture
from alphaquant.models.block_scaled import BlockScales, decoded_entries
from alphaquant.models.tensors import TensorEntry

BLOCKS, SCALES = "_blocks", "_scales"
"""Endings of MXFP4: 32 elements in 16 bytes, and the exponents that each 32 share."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one tensor lies in the tensor that a file holds."""

    stored: str
    """Name of the whole: weights `[experts, in, out]` or biases `[experts, out]`."""
    expert: int
    first: int
    """Its first output there."""
    step: int
    """How far its next one is: projections that share a tensor take turns."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint's tensors as everybody sees them, and as files have them."""

    entries: dict[str, TensorEntry]
    """One tensor per linear, bias and norm."""
    files: dict[str, TensorEntry]
    """What a file of ours holds: fused tensors whole, MXFP4 and FP8 decoded."""
    pieces: dict[str, Piece]
    """By name in `entries`; the others are whole tensors."""
    mxfp4: Mapping[str, Path] = field(default_factory=dict)
    """Names in `files` that the source has as MXFP4, with the file of their scales."""
    fp8: Mapping[str, BlockScales] = field(default_factory=dict)
    """Names in `files` that the source has as FP8, with where their scales lie."""

    @property
    def decoded(self) -> bool:
        """Whether a file of ours holds other tensors than the source's."""
        return bool(self.mxfp4 or self.fp8)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of `entries`."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def parts(self, stored: str) -> list[str]:
        """Names of the pieces of a fused tensor; none for others."""
        return self._parts.get(stored, [])

    @functools.cached_property
    def _parts(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, piece in self.pieces.items():
            found.setdefault(piece.stored, []).append(name)
        return found


def check_whole(layout: Layout, linears: Iterable[str], export: str) -> None:
    """Raise FormatError for linears to be packed that files hold together with others."""
    if fused := [name for name in linears if f"{name}.weight" in layout.pieces]:
        raise FormatError(
            f"{fused[0]} is part of a fused tensor on disk, which {export} has no place for; "
            "export.format=dense writes it"
        )


def layout_of(
    architecture: Architecture,
    entries: Mapping[str, TensorEntry],
    config: Mapping[str, Any] | None = None,
) -> Layout:
    """Cut the fused experts in a folder's `entries` into linears, and take FP8 for what its config.json says it is.

    Without `config` nothing is FP8. Raises ModelError for blocks without scales.
    """
    entries, fp8 = decoded_entries(entries, config or {}, f"{architecture.embedding}.weight")
    seen: dict[str, TensorEntry] = {}
    files: dict[str, TensorEntry] = {}
    pieces: dict[str, Piece] = {}
    mxfp4: dict[str, Path] = {}
    for name, entry in entries.items():
        folder, tensor, ending = _fused(architecture, name, entry)
        if tensor is None:
            seen[name] = files[name] = entry
            continue
        if ending == SCALES:
            continue
        whole = name
        if ending == BLOCKS:
            whole = name.removesuffix(BLOCKS)
            if f"{whole}{SCALES}" not in entries:
                raise ModelError(
                    f"tensor {whole}{SCALES} is missing from the checkpoint, which has {name}. "
                    "Download the model again."
                )
            mxfp4[whole] = entries[f"{whole}{SCALES}"].file
            experts, outputs, groups, half = entry.shape
            entry = TensorEntry(entry.file, "BF16", (experts, 2 * half * groups, outputs))
        files[whole] = entry
        projections = architecture.fused_experts[tensor]
        step, kind = len(projections), "bias" if ending == "_bias" else "weight"
        rows = entry.shape[-1] // step
        shape = (rows,) if kind == "bias" else (rows, entry.shape[1])
        for expert in range(entry.shape[0]):
            for first, projection in enumerate(projections):
                piece = f"{folder}.{expert}.{projection}.{kind}"
                seen[piece] = TensorEntry(entry.file, entry.dtype, shape)
                pieces[piece] = Piece(whole, expert, first, step)
    return Layout(seen, files, pieces, mxfp4, fp8)


_DIMENSIONS = {"": 3, "_bias": 2, BLOCKS: 4, SCALES: 3}


def _fused(
    architecture: Architecture, name: str, entry: TensorEntry
) -> tuple[str, str | None, str]:
    """Folder of the experts, fused tensor and ending that a name is made of; no tensor for other names."""
    if architecture.fused_experts:
        tensors = "|".join(map(re.escape, architecture.fused_experts))
        endings = "|".join(_DIMENSIONS)
        pattern = rf"(.+\.{re.escape(architecture.experts)})\.({tensors})({endings})"
        match = re.fullmatch(pattern, name)
        if match and len(entry.shape) == _DIMENSIONS[match[3]]:
            return match[1], match[2], match[3]
    return "", None, ""
