"""PackedCheckpoint: a quantized model folder, seen as the dense model that it stands for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from alphaquant.errors import FormatError, ModelError
from alphaquant.formats.decode import unpack, weight_shape
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.fused import Layout, layout_of
from alphaquant.models.packed_config import (
    StoredAs,
    activation_rule,
    storage_of,
    storage_rule,
)
from alphaquant.models.resolve import read_config
from alphaquant.models.rows import architecture_of
from alphaquant.models.shard import DTYPES
from alphaquant.models.tensors import TensorEntry, decoded_dtype, tensor_index

_SCALES = ("weight_scale", "scales")
_CACHE_SCALES = ("k_scale", "v_scale")
"""Of keys and values as they are served; no tensors of the model."""


def open_checkpoint(
    folder: Path | str,
    trust_remote_code: bool = False,
    architecture: Literal["auto", "generic"] = "auto",
) -> Checkpoint:
    """A model folder as the dense model that it is or stands for. Raises ModelError as `Checkpoint` does."""
    config = read_config(Path(folder))
    kind = Checkpoint
    if config.get("quantization_config"):
        row = architecture_of(config, architecture, trust_remote_code=trust_remote_code)
        kind = Checkpoint if row.reads(config) else PackedCheckpoint
    return kind(folder, trust_remote_code, architecture)


class PackedCheckpoint(Checkpoint):
    """Its tensors are decoded when they are asked for, one at a time, into the dtype that config.json names.

    Where it names none, into that of the embedding.
    """

    def _index(self) -> Layout:
        """The dense tensors; what they are decoded from is kept aside, by the linear's name on disk."""
        rule = storage_rule(self.raw_config["quantization_config"])
        self._written: dict[str, str] = {}
        self._leaves: dict[str, dict[str, tuple[str, TensorEntry]]] = {}
        self.stored_as: dict[str, StoredAs] = {}
        """How linears are stored, but those that are stored as plain values."""
        stored = tensor_index(self.path)
        dtype = decoded_dtype(self.raw_config, stored.get(f"{self.architecture.embedding}.weight"))
        self._dtype = DTYPES[dtype]
        packed = {n.rpartition(".")[0] for n in stored if n.rpartition(".")[2] in _SCALES}
        entries: dict[str, TensorEntry] = {}
        for written, entry in stored.items():
            linear, _, leaf = written.rpartition(".")
            if leaf in _CACHE_SCALES:
                continue
            if linear not in packed or leaf == "bias":
                name = self.architecture.disk_name(written)
                entries[name], self._written[name] = entry, written
                continue
            name = self.architecture.disk_name(linear)
            if name not in self._leaves:
                module = self.architecture.module_name(linear)
                self._leaves[name] = {}
                self.stored_as[name] = storage_of(rule, linear, module)
            self._leaves[name][leaf] = (written, entry)
        for name in self._leaves:
            file = next(iter(self._leaves[name].values()))[1].file
            entries[f"{name}.weight"] = TensorEntry(file, dtype, self._shape(name))
        return layout_of(self.architecture, entries)

    @functools.cached_property
    def config(self) -> Any:
        """The transformers config of the dense model."""
        config = super().config
        del config.quantization_config
        return config

    @property
    def activations(self) -> dict[str, str]:
        """The formats that consumers are asked to round inputs to, by linear name.

        Raises ModelError for one that is not simulated.
        """
        rule = activation_rule(self.raw_config["quantization_config"])
        asked = {
            name: rule(next(iter(leaves.values()))[0].rpartition(".")[0])
            for name, leaves in self._leaves.items()
        }
        return {name: activation for name, activation in asked.items() if activation}

    def tensor(self, name: str) -> Tensor:
        """One tensor of the dense model, by its full name on disk. Raises ModelError when it cannot be decoded."""
        linear = name.removesuffix(".weight")
        if name in self.layout.pieces:
            return super().tensor(name)
        if linear not in self._leaves:
            if name not in self._written:
                raise ModelError(f"tensor {name} is missing from {self.path}")
            return self._read(self._written[name], self.entries[name].file)
        scheme, carrier, block_rows = self.stored_as[linear]
        leaves = {leaf: self._read(n, e.file) for leaf, (n, e) in self._leaves[linear].items()}
        rows, cols = self.entries[name].shape
        try:
            weight = unpack(leaves, carrier, scheme, (rows, cols), block_rows)
        except FormatError as error:
            raise ModelError(f"{linear} of {self.path} cannot be decoded: {error}") from error
        return weight.dequantize().to(self._dtype)

    def _shape(self, linear: str) -> tuple[int, int]:
        """The dense shape [out, in], from those of the stored tensors."""
        scheme, carrier, _ = self.stored_as[linear]
        leaves = self._leaves[linear]
        if carrier.layout == "words" and {"weight_packed", "weight_shape"} <= leaves.keys():
            name, entry = leaves["weight_shape"]
            rows, cols = self._read(name, entry.file).tolist()
            return int(rows), int(cols)
        shapes = {leaf: entry.shape for leaf, (_, entry) in leaves.items()}
        found = weight_shape(shapes, carrier, scheme.number_format.bits)
        if found is None:
            raise ModelError(
                f"{linear} of {self.path} has {', '.join(sorted(leaves))} but no codes; "
                "the checkpoint is incomplete, download it again"
            )
        return found
