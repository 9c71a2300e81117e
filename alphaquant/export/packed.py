"""Packed export: codes and scales as other software stores them, tensor by tensor, in the original's shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaquant.algorithms.quantized_block import (
    kept,
    load_block,
    load_moved,
    load_schemes,
    with_own_head,
)
from alphaquant.clock import timed
from alphaquant.errors import FormatError, ModelError
from alphaquant.export import compressed_tensors, gptq, quark
from alphaquant.export.block_reader import BlockReader
from alphaquant.export.folder import copy_small_files, shards, write_index, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.formats.carriers import Carrier, PackedFormat, carrier_of, misfit, stored_tensors
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.stored import pack, rounded_scales
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.fused import check_whole
from alphaquant.models.fused_tensors import assembled
from alphaquant.models.linear import LinearSpec
from alphaquant.models.shard import DTYPES
from alphaquant.models.tensors import TensorEntry
from alphaquant.progress import reporter, track

_SMALL = 8  # elements of a leaf that is remembered instead of packed twice


def export_packed(
    checkpoint: Checkpoint,
    blocks: Sequence[Path],
    routers: Mapping[str, Tensor],
    out: Path,
    export: PackedFormat,
    *,
    activations: Mapping[str, str] | None = None,
    module_names: bool = False,
    kv_cache: str | None = None,
) -> None:
    """Write a checkpoint folder in format `export` under the original's names and shards, one block in memory.

    `routers` (by linear name) replace the kept ones; `activations` (format by linear name) are what consumers are
    asked to quantize. `module_names` writes experts under transformers' names where those on disk differ, as
    GPTQModel wants. `kv_cache` (fp8) asks for keys and values in that format, with scales of 1. Every file that is no
    weight is copied. Raises FormatError naming a linear that `export` cannot store.
    """
    checkpoint = with_own_head(checkpoint, blocks)
    stored = {name: s for folder in blocks for name, s in load_schemes(folder).items()}
    schemes = {name: scheme for name, scheme in stored.items() if scheme.format != "bf16"}
    activations = activations or {}
    rename = checkpoint.architecture.module_name if module_names else str
    writer = _Writer(checkpoint, blocks, routers, schemes, export, activations, rename)
    if kv_cache and schemes:
        writer.add_cache_scales()
    copy_small_files(checkpoint.path, out)
    config = checkpoint.raw_config
    if schemes:  # with everything kept it is a model like any other
        settings = _settings(export, checkpoint.specs, schemes, activations, rename)
        if kv_cache:
            settings["kv_cache_scheme"] = compressed_tensors.kv_cache_scheme(kv_cache)
        config = config | {"quantization_config": settings}
        if export == "gptq":
            write_json(out / "quantize_config.json", settings)
    write_json(
        out / "config.json", config
    )  # not the copied one: an original in MXFP4 or FP8 is bf16 now
    write_index(checkpoint.path, out, writer.entries)
    files = shards(writer.entries)
    for file in track(files, "shard", len(files)):
        write_safetensors(out / file.name, files[file], writer.value)
    if writer.rounded_scales:
        reporter().note(
            f"{writer.rounded_scales} scales of tiny weights were rounded to fp16, as {export} stores them; evaluation "
            "reads what was stored"
        )


def _settings(
    export: PackedFormat,
    specs: Sequence[LinearSpec],
    schemes: Mapping[str, Scheme],
    activations: Mapping[str, str],
    rename: Callable[[str], str],
) -> dict[str, Any]:
    """The quantization_config, under the names that are written."""
    named = [replace(spec, name=rename(spec.name)) for spec in specs]
    by_name = {rename(name): scheme for name, scheme in schemes.items()}
    if export == "compressed-tensors":
        inputs = {rename(name): form for name, form in activations.items()}
        return compressed_tensors.quantization_config(named, by_name, inputs)
    make = gptq.quantization_config if export == "gptq" else quark.quantization_config
    return make(named, by_name)


class _Writer:
    """The tensors of the packed checkpoint, and the value of each when it is asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        blocks: Sequence[Path],
        routers: Mapping[str, Tensor],
        schemes: Mapping[str, Scheme],
        export: PackedFormat,
        activations: Mapping[str, str],
        rename: Callable[[str], str],
    ) -> None:
        self._checkpoint, self._routers = checkpoint, routers
        self._weights = BlockReader(checkpoint, len(blocks), lambda at: load_block(blocks[at]))
        self._moved = BlockReader(checkpoint, len(blocks), lambda at: load_moved(blocks[at]))
        self._in_blocks = {spec.name for spec in checkpoint.specs if spec.block is not None}
        self._carriers: dict[str, Carrier] = {}
        self._leaf: dict[str, tuple[str, str]] = {}  # written name -> linear, leaf
        self._kept: dict[str, str] = {}  # written name -> name in the checkpoint
        self._packed: tuple[str, dict[str, Tensor]] = ("", {})
        self._small: dict[str, Tensor] = {}
        self.rounded_scales = 0
        self.entries: dict[str, TensorEntry] = {}
        """Every tensor that is written, by its name there."""
        if unquantized := sorted(activations.keys() - schemes.keys()):
            raise FormatError(
                f"{unquantized[0]} is kept bf16 and has activations as {activations[unquantized[0]]}: no checkpoint asks "
                "for that. Leave aq out for it, or quantize it; export.format=dense simulates it"
            )
        for linear in (spec.name for spec in checkpoint.specs if spec.name in schemes):
            found = carrier_of(schemes[linear], export, activations.get(linear))
            if not isinstance(found, Carrier):
                raise FormatError(f"{linear}: {found}")
            self._carriers[linear] = found
        check_whole(checkpoint.layout, schemes, export)
        for name, entry in checkpoint.layout.files.items():
            linear = name.removesuffix(".weight")
            if linear in schemes:
                self._add(rename(linear), linear, schemes[linear], entry)
            else:
                self.entries[rename(name)] = entry
                self._kept[rename(name)] = name

    def _add(self, written: str, linear: str, scheme: Scheme, entry: TensorEntry) -> None:
        carrier, (rows, cols) = self._carriers[linear], entry.shape
        if reason := misfit(carrier, scheme, rows, cols):
            raise FormatError(f"{linear} as {scheme}: {reason}")
        for leaf, (dtype, shape) in stored_tensors(
            carrier, scheme, rows, cols, entry.dtype
        ).items():
            self.entries[f"{written}.{leaf}"] = TensorEntry(entry.file, dtype, shape)
            self._leaf[f"{written}.{leaf}"] = (linear, leaf)

    def add_cache_scales(self) -> None:
        """Write scales of 1 for keys and values beside every block's attention.

        vLLM takes 1 where there are none; transformers takes whatever memory held.
        """
        for spec in (spec for spec in self._checkpoint.specs if spec.role == "o"):
            entry = self._checkpoint.entries[f"{spec.name}.weight"]
            attention = spec.name.rpartition(".")[0]
            for name in (f"{attention}.k_scale", f"{attention}.v_scale"):
                self.entries[name] = TensorEntry(entry.file, entry.dtype, (1,))
                self._small[name] = torch.ones(1)

    def value(self, name: str) -> Tensor:
        """One tensor, by its written name."""
        if name in self._small:
            return self._small.pop(name)
        if name not in self._leaf:
            return assembled(self._checkpoint.layout, self._kept[name], self._unpacked)
        linear, leaf = self._leaf[name]
        if self._packed[0] != linear:
            self._pack(linear, name.removesuffix(f".{leaf}"))
        return self._packed[1][leaf]

    @timed("pack")
    def _pack(self, linear: str, written: str) -> None:
        weight: QuantizedWeight | None = self._weights.get(linear)
        if weight is None:
            raise ModelError(f"the quantized blocks hold no {linear}; quantize the model again")
        dtype = DTYPES[self._checkpoint.entries[f"{linear}.weight"].dtype]
        try:
            stored = pack(weight, self._carriers[linear], dtype)
        except FormatError as error:
            raise FormatError(f"{linear}: {error}") from error
        self.rounded_scales += rounded_scales(weight, self._carriers[linear], dtype)
        self._packed = (linear, stored)
        self._small |= {f"{written}.{leaf}": t for leaf, t in stored.items() if t.numel() < _SMALL}

    def _unpacked(self, name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear in self._routers:
            return self._routers[linear]
        if (moved := self._moved.get(linear)) is not None:
            return moved
        value = self._checkpoint.tensor(name)
        return kept(value) if linear in self._in_blocks else value
