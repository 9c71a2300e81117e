"""Toy language models whose next-token distributions are known exactly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.evaluation.predictions import Predictions, WholeModel


class Bigram(nn.Module):
    """Next-token logits are a row of a table `[vocabulary, vocabulary]`; parts and calls as in transformers."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.model = _Rows(table)
        self.lm_head = nn.Identity()

    @property
    def table(self) -> Tensor:
        """Its logits by the token before."""
        return self.model.table

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> Any:
        hidden = self.model(inputs_embeds=inputs_embeds, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden))

    def predict(self, windows: Tensor, batch_size: int = 8) -> Predictions:
        """What evaluation compares."""
        return WholeModel(self, "cpu", batch_size).predictions(windows)


class _Rows(nn.Module):
    """The decoder, whose last hidden states are the logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls: list[int] = []

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not self.training
        self.calls.append(len(input_ids))
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


def random_bigram(vocabulary: int = 11, seed: int = 0, noise: float = 0.0) -> Bigram:
    """A table from one seed, moved by `noise` times another."""
    table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
    other = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed + 1))
    return Bigram(table + noise * other)


def random_windows(count: int, length: int, vocabulary: int = 11) -> Tensor:
    """Seeded token windows, int64 `[count, length]`."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(vocabulary, (count, length), generator=generator)
