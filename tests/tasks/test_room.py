"""What evaluation may take follows from the memory limit of the whole process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alphaquant.config import ExecutionConfig
from alphaquant.models import device
from tasks.room import room_of


def test_what_the_process_holds_counts_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_LIBRARIES", 0)
    monkeypatch.setattr(device, "free_memory", lambda _: None)

    def fits(size: float, limit: str | None, held: float) -> bool:
        monkeypatch.setattr(device, "resident", lambda: int(held))
        model: Any = SimpleNamespace(whole_bytes=lambda _: int(size))
        return room_of(ExecutionConfig(device="cpu", memory_limit=limit)).holds(model)

    assert fits(1e15, None, held=0)
    # a part in sixteen stays free, and a tenth of what remains is for windows
    assert fits(13.4e9, "17GB", held=1e9)
    assert not fits(13.6e9, "17GB", held=1e9)
    assert not fits(13.4e9, "17GB", held=1.2e9)
    assert not fits(1, "500MB", held=1e9)
