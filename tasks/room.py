"""What stages that evaluate may take of the machine they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.evaluation.room import Room


def room_of(execution: ExecutionConfig) -> Room:
    """The device, windows per forward pass, and the memory that the process may take."""
    from alphaquant.evaluation.room import Room
    from alphaquant.models.device import compute_device

    return Room(compute_device(execution.device), execution.batch_size, execution.memory_bytes)
