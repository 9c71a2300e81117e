"""A tied model whose head is a tensor of its own, as it has to be once it is quantized."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import HEAD


class UntiedCheckpoint(Checkpoint):
    """`source` with an lm_head.weight beside its embedding, in the embedding's file; it computes the same."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self.path, self.trust_remote_code = source.path, source.trust_remote_code
        self.architecture, self.blocks = source.architecture, source.blocks
        self.raw_config = source.raw_config | {"tie_word_embeddings": False}
        embedding = source.entries[f"{source.architecture.embedding}.weight"]
        self.entries = {f"{HEAD}.weight": embedding} | source.entries
        files = {f"{HEAD}.weight": embedding} | source.layout.files
        self.layout = replace(source.layout, entries=self.entries, files=files)
        self.specs = source.plannable

    @functools.cached_property
    def config(self) -> Any:
        """The transformers config of the untied model."""
        return untied_config(self._source)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the source; its embedding under the name of the head."""
        return self._source.head_weight() if name == f"{HEAD}.weight" else self._source.tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the source gives it in."""
        embedding = f"{self.architecture.embedding}.weight"
        return self._source.dtype(embedding if name == f"{HEAD}.weight" else name)


def untied_config(source: Checkpoint) -> Any:
    """The transformers config of `source` with a head of its own."""
    config = copy.deepcopy(source.config)
    config.tie_word_embeddings = False
    return config
