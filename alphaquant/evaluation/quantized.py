"""A plan quantized for whoever only measures it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import QuantizationConfig
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from alphaquant.progress import unreported


@contextlib.contextmanager
def quantized_for_now(
    checkpoint: Checkpoint,
    plan: QuantPlan,
    tokens: Tensor,  # [windows, length]
    config: QuantizationConfig,
    room: Room,
) -> Iterator[list[Path]]:
    """The blocks' folders while the context is open; progress is not shown. Raises ConfigError as `quantize_blocks` does."""
    with tempfile.TemporaryDirectory() as folder, unreported():
        yield quantize_blocks(
            checkpoint,
            plan,
            tokens,
            config,
            device=room.device,
            batch_size=room.batch_size,
            blocks=FreshBlocks(Path(folder)),
            memory_limit=room.memory_limit,
            scratch=Path(folder),
        )
