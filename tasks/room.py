"""What stages that evaluate may take of the machine they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.evaluation.room import Room


def room_of(execution: ExecutionConfig) -> Room:
    """The device and what of its memory evaluation may use: within the limit, what the process does not hold yet."""
    from alphaquant.evaluation.room import Room
    from alphaquant.models.device import compute_device, room_for

    device, limit = compute_device(execution.device), execution.memory_bytes
    left = None if limit is None else max(0, room_for(limit, device))
    return Room(device, execution.batch_size, left)
