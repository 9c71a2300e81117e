"""What evaluation may take follows from the memory limit of the whole process."""

from __future__ import annotations

import pytest

from alphaquant.config import ExecutionConfig
from alphaquant.models import device
from tasks.room import room_of


def test_what_the_process_holds_counts_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "resident", lambda: 1_000_000_000)
    monkeypatch.setattr(device, "_LIBRARIES", 0)

    def left(limit: str | None) -> int | None:
        return room_of(ExecutionConfig(device="cpu", memory_limit=limit)).memory_limit

    assert left(None) is None
    assert left("17GB") == 15_000_000_000  # a part in sixteen stays free
    assert left("500MB") == 0
