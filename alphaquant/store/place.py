"""Where a computation took place: recorded with every result, part of no key."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from alphaquant.resident import device_peak, peak, start_peak
from alphaquant.work import Rates


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Place(BaseModel):
    """Host, device and process of a computation, and when it began and ended (UTC)."""

    model_config = ConfigDict(frozen=True)

    device: str = "cpu"
    host: str = Field(default_factory=socket.gethostname)
    process: int = Field(default_factory=os.getpid)
    job: str | None = None
    """The dispatched job that computed it; None for a run that works by itself."""
    started: str = Field(default_factory=_now)
    ended: str | None = None
    rates: Rates | None = None
    """What the machine was measured to do in a second; None where nobody did."""
    memory: int | None = None
    """Bytes that the process had in memory at most meanwhile; None where the system does not say."""
    device_memory: int | None = None
    """Bytes that its tensors took of the GPU at most."""

    def begun(self) -> Place:
        """The same place, at the beginning of the computation: peaks of memory are counted from here."""
        start_peak()
        return self

    def finished(self) -> Place:
        """The same place, at the end of the computation."""
        found = {"ended": _now(), "memory": peak(), "device_memory": device_peak()}
        return self.model_copy(update=found)
