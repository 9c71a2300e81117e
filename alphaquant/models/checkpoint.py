"""Checkpoint: a model on disk, read one tensor at a time; the whole model is never in memory."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.errors import ModelError, first_line
from alphaquant.formats.block_scaled import decode_block_scaled
from alphaquant.formats.grid import all_finite
from alphaquant.models.architecture import Architecture, required_int
from alphaquant.models.fused import SCALES, Layout, layout_of
from alphaquant.models.fused_tensors import cut
from alphaquant.models.linear import LinearSpec
from alphaquant.models.native import teach_transformers
from alphaquant.models.resolve import read_config
from alphaquant.models.rows import architecture_of
from alphaquant.models.shard import DTYPES, Shard
from alphaquant.models.tensors import TensorEntry, tensor_index

LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    ZeroDivisionError,
    StrictDataclassError,
)
"""What transformers raises when a model's small files are wrong."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)
_SMALLEST_VOCABULARY = 16


class Checkpoint:
    """A model folder. Opening reads headers only; reading is safe from several threads."""

    def __init__(
        self,
        path: Path | str,
        trust_remote_code: bool = False,
        architecture: Literal["auto", "generic"] = "auto",
    ) -> None:
        self.path = Path(path)
        self.trust_remote_code = trust_remote_code
        self.raw_config: dict[str, Any] = read_config(self.path)
        row = architecture_of(self.raw_config, architecture, trust_remote_code=trust_remote_code)
        self.architecture: Architecture = row
        teach_transformers(row.model_type)
        self._shards: dict[Path, Shard] = {}
        self._opening = threading.Lock()
        self.layout: Layout = self._index()
        if row.reads(self.raw_config):
            self.raw_config.pop("quantization_config", None)  # what is read is decoded
        self.entries: dict[str, TensorEntry] = self.layout.entries
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.architecture = row.fitted(shapes)
        self.specs: list[LinearSpec] = self.architecture.linears(self.raw_config, shapes)
        self.blocks = required_int(self.raw_config, "num_hidden_layers")

    def _index(self) -> Layout:
        """Every tensor that can be asked for, and what a file holds of them."""
        return layout_of(self.architecture, tensor_index(self.path), self.raw_config)

    @functools.cached_property
    def config(self) -> Any:
        """The transformers config. Raises ModelError when transformers refuses config.json."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except LOADING_ERRORS as error:
            raise ModelError(
                f"transformers refuses {self.path / 'config.json'} ({first_line(error)}). "
                "Mend it, or download the model again."
            ) from error
        if "quantization_config" not in self.raw_config and hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises ModelError when the folder has none that loads."""
        return tokenizer_in(self.path, self.trust_remote_code)

    @property
    def context_length(self) -> int:
        """Positions the model was made for."""
        if not self.raw_config.get("max_position_embeddings"):
            return 2048
        return required_int(self.raw_config, "max_position_embeddings")

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return sum(_product(entry.shape) for entry in self.entries.values())

    def whole_bytes(self, dtype: torch.dtype) -> int:
        """What all weights take in memory in a dtype, decoded where they are packed."""
        return self.parameters * dtype.itemsize

    @timed("load weights")
    def tensor(self, name: str) -> Tensor:
        """One tensor by its full name on disk, in its stored dtype, or in that of its entry where it is decoded."""
        entry = self._entry(name)
        piece = self.layout.pieces.get(name)
        if piece is None:
            return self._whole(name, entry)
        scales = self.layout.mxfp4.get(piece.stored)

        def read(stored: str) -> Tensor:
            file = scales if scales and stored.endswith(SCALES) else entry.file
            return self._read(stored, file, piece.expert)

        return cut(piece, read, mxfp4=scales is not None)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `tensor` gives one in, without reading it. Raises ModelError when there is no such tensor."""
        return DTYPES[self._entry(name).dtype]

    def _entry(self, name: str) -> TensorEntry:
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"tensor {name} is missing from {self.path}")
        return entry

    def _whole(self, name: str, entry: TensorEntry) -> Tensor:
        """A tensor that is one in its file too, FP8 decoded."""
        values, scales = self._read(name, entry.file), self.layout.fp8.get(name)
        if scales is None:
            return values
        factors = self._read(scales.name, scales.file)
        return decode_block_scaled(values, factors, scales.block, DTYPES[entry.dtype])

    def _read(self, name: str, file: Path, part: int | None = None) -> Tensor:
        """A tensor of a file, or one `part` of its first dimension."""
        return self._shard(file).tensor(name, part)

    def weight(self, linear: str) -> Tensor:
        """A linear's weight `[out, in]` in its stored dtype, by the linear's name."""
        return self.tensor(f"{linear}.weight")

    def head_weight(self) -> Tensor:
        """The output projection `[vocabulary, hidden]` in its stored dtype, tied or not, as config.json says.

        Raises ModelError for a tied model whose own lm_head.weight differs: transformers would not tie it.
        """
        embedding, head = f"{self.architecture.embedding}.weight", "lm_head.weight"
        if not self.config.tie_word_embeddings:
            return self.tensor(head)
        stored = self.tensor(embedding)
        if head in self.entries:
            own = self.tensor(head)
            if not torch.equal(own.to(stored.device, stored.dtype), stored):
                raise ModelError(
                    f"config.json of {self.path} has tie_word_embeddings: true, but {head} differs from "
                    f"{embedding}. Set tie_word_embeddings to false, or remove {head}."
                )
        return stored

    @property
    def plannable(self) -> list[LinearSpec]:
        """What a plan may name: `specs`, and the head also where it is tied."""
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        return self.architecture.with_head(self.specs, shapes)

    def block_specs(self, block: int) -> list[LinearSpec]:
        """The linears of one decoder block."""
        return [spec for spec in self.specs if spec.block == block]

    def block_norms(self, block: int) -> list[str]:
        """Names (without `.weight`) of a decoder block's norms: its vectors that are no biases."""
        prefix = f"{self.architecture.blocks}.{block}."
        return sorted(
            name.removesuffix(".weight")
            for name, entry in self.entries.items()
            if name.startswith(prefix) and name.endswith(".weight") and len(entry.shape) == 1
        )

    def _shard(self, file: Path) -> Shard:
        with self._opening:
            if file not in self._shards:
                try:
                    self._shards[file] = Shard(file)
                except OSError as error:
                    raise ModelError(f"cannot read {file}: {error}") from error
            return self._shards[file]


def tokenizer_in(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder. Raises ModelError when it has none that loads."""
    from transformers import AutoTokenizer

    advice = "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights."
    # without them transformers makes an empty tokenizer; remote code may name its files freely
    if not trust_remote_code and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). {advice}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        size = len(tokenizer)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"no tokenizer loads from {folder} ({first_line(error)}). {advice}"
        ) from error
    if size < _SMALLEST_VOCABULARY:
        raise ModelError(
            f"the tokenizer of {folder} has {size} tokens, a vocabulary has at least "
            f"{_SMALLEST_VOCABULARY}: its files are incomplete. {advice}"
        )
    return tokenizer


def finite(weight: Tensor, name: str) -> Tensor:
    """The weight itself. Raises ModelError naming it when it holds NaN or infinity."""
    # torch has no isfinite of 8-bit floats
    values = weight if weight.element_size() > 1 else weight.float()
    if not all_finite(values):
        bad = int((~values.isfinite()).sum())
        raise ModelError(
            f"weight {name} holds {bad} NaN or infinite values of {weight.numel()}; "
            "the checkpoint is damaged or training diverged. Fix the weight and run again."
        )
    return weight


def check_vocabulary(checkpoint: Checkpoint, tokens: Tensor) -> None:
    """Raise ModelError when a token id has no row in the model's embedding."""
    largest = int(tokens.max())
    rows = checkpoint.entries[f"{checkpoint.architecture.embedding}.weight"].shape[0]
    if largest >= rows:
        raise ModelError(
            f"the tokenizer gives id {largest}, the embedding has {rows} rows: tokenizer and "
            f"weights are of different models. Put the model's own tokenizer in {checkpoint.path}."
        )


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
