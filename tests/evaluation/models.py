"""Toy language models whose next-token distributions are known exactly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Bigram(nn.Module):
    """Next-token logits are a row of a table `[vocabulary, vocabulary]`."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls: list[int] = []

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        self.calls.append(len(input_ids))
        return SimpleNamespace(logits=self.table[input_ids])


def random_bigram(vocabulary: int = 11, seed: int = 0, noise: float = 0.0) -> Bigram:
    """A table from one seed, moved by `noise` times another."""
    table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
    other = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed + 1))
    return Bigram(table + noise * other)


def random_windows(count: int, length: int, vocabulary: int = 11) -> Tensor:
    """Seeded token windows, int64 `[count, length]`."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(vocabulary, (count, length), generator=generator)
