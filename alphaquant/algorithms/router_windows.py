"""The windows of router repair: most are learned from, some are held out to judge by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alphaquant.config import RouterConfig
from alphaquant.errors import DataError
from alphaquant.text.windows import held_out


@dataclass(frozen=True)
class Windows:
    """Batches `[windows, length]` of token ids."""

    train: list[Tensor]
    held: list[Tensor]


def split_windows(tokens: Tensor, config: RouterConfig) -> Windows:
    """Split `[windows, length]`; the last ones are held out, as they are when blocks are tuned.

    Windows come in random order already, and those that codes were tuned on would say too much good of
    the quantized model. Raises DataError for fewer than two windows: one to learn from and one to hold out.
    """
    if tokens.shape[0] < 2:
        raise DataError(
            "router repair needs at least 2 calibration windows; raise calibration.samples"
        )
    train = held_out(tokens.shape[0]).start
    return Windows(
        list(tokens[:train].split(config.batch_size)),
        list(tokens[train:].split(config.batch_size)),
    )
