"""Checkpoint: a model on disk, read one tensor at a time; the whole model is never in memory."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alphaquant.errors import ModelError
from alphaquant.models.architecture import Architecture, architecture_of
from alphaquant.models.linear import LinearSpec
from alphaquant.models.resolve import read_config
from alphaquant.models.tensors import TensorEntry, tensor_index


class Checkpoint:
    """A model folder. Opening reads headers only; reading is safe from several threads."""

    def __init__(self, path: Path | str, trust_remote_code: bool = False) -> None:
        self.path = Path(path)
        self.trust_remote_code = trust_remote_code
        self.raw_config: dict[str, Any] = read_config(self.path)
        self.architecture: Architecture = architecture_of(self.raw_config, trust_remote_code)
        self.entries: dict[str, TensorEntry] = tensor_index(self.path)
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.specs: list[LinearSpec] = self.architecture.linears(self.raw_config, shapes)
        self.blocks = int(self.raw_config["num_hidden_layers"])
        self._handles: dict[Path, Any] = {}
        self._opening = threading.Lock()

    @functools.cached_property
    def config(self) -> Any:
        """The transformers config."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises ModelError when the folder has none that loads."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                self.path, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelError(
                f"no tokenizer loads from {self.path} ({str(error).splitlines()[0]}). Put the "
                "tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights."
            ) from error

    @property
    def context_length(self) -> int:
        """Positions the model was made for."""
        return int(self.raw_config.get("max_position_embeddings") or 2048)

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return sum(_product(entry.shape) for entry in self.entries.values())

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype, by its full name on disk."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"tensor {name} is missing from {self.path}")
        try:
            return self._handle(entry.file).get_tensor(name)  # type: ignore[no-any-return]
        except SafetensorError as error:
            raise ModelError(f"{entry.file} is damaged at tensor {name}: {error}") from error

    def weight(self, linear: str) -> Tensor:
        """A linear's weight `[out, in]` in its stored dtype, by the linear's name."""
        return self.tensor(f"{linear}.weight")

    def block_specs(self, block: int) -> list[LinearSpec]:
        """The linears of one decoder block."""
        return [spec for spec in self.specs if spec.block == block]

    def block_tensors(self, block: int) -> dict[str, Tensor]:
        """Every tensor of one decoder block, by its name relative to the block, on disk."""
        prefix = f"{self.architecture.blocks}.{block}."
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.entries
            if name.startswith(prefix)
        }

    def _handle(self, file: Path) -> Any:
        with self._opening:
            if file not in self._handles:
                try:
                    self._handles[file] = safe_open(file, framework="pt")
                except (SafetensorError, OSError) as error:
                    raise ModelError(f"cannot read {file}: {error}") from error
            return self._handles[file]


def finite(weight: Tensor, name: str) -> Tensor:
    """The weight itself. Raises ModelError naming it when it holds NaN or infinity."""
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise ModelError(
            f"weight {name} holds {bad} NaN or infinite values of {weight.numel()}; "
            "the checkpoint is damaged or training diverged. Fix the weight and run again."
        )
    return weight


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
