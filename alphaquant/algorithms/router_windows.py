"""The windows of router repair: most are learned from, some are held out to judge by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.config import RouterConfig
from alphaquant.errors import DataError

_HELD_OUT = 8  # one window in so many is held out


@dataclass(frozen=True)
class Windows:
    """Batches `[windows, length]` of token ids."""

    train: list[Tensor]
    held: list[Tensor]


def split_windows(tokens: Tensor, config: RouterConfig) -> Windows:
    """Split `[windows, length]` by the config's seed.

    Raises DataError for fewer than two windows: one to learn from and one to hold out.
    """
    if tokens.shape[0] < 2:
        raise DataError(
            "router repair needs at least 2 calibration windows; raise calibration.samples"
        )
    generator = torch.Generator().manual_seed(config.seed)
    shuffled = tokens[torch.randperm(tokens.shape[0], generator=generator)]
    held = max(1, shuffled.shape[0] // _HELD_OUT)
    return Windows(
        list(shuffled[held:].split(config.batch_size)),
        list(shuffled[:held].split(config.batch_size)),
    )
