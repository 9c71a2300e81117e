"""One computation per device: a stage that wants a GPU holds its device's lock while it computes.

A worker per device already sees to that, until a worker is killed and the process it started lives on. The
lock belongs to the process that computes, so the next job waits for such an orphan and never longer.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alphaquant.store.lock import locked
from alphaquant.store.place import Place
from alphaquant.store.stage import Stage
from alphaquant.work import Rates

PRETENDED = "ALPHAQUANT_DEVICE"
"""Environment variable: the name of a device that this process owns, on machines without GPUs."""
_SHARED = Path("/run/lock")
"""Seen by all processes of a machine, also where each service has a /tmp of its own."""


@contextlib.contextmanager
def claim_device(
    stage: Stage, inputs: Mapping[str, Any], job: str | None = None
) -> Iterator[Place]:
    """Hold the device that the stage will compute on; CPU work holds nothing."""
    device = device_of(stage, inputs.get("execution"))
    if device == "cpu":
        yield Place(job=job, rates=_rates(stage, inputs.get("execution")))
        return
    what, doing = f"{stage.name} on {device}", "using it"
    with locked(lock_folder(), device.replace("/", "-"), what, doing):
        yield Place(device=device, job=job, rates=_rates(stage, inputs.get("execution")))


def _rates(stage: Stage, execution: Any) -> Rates:
    """What the device can do, measured before a stage begins: all stages need torch anyway."""
    from alphaquant.models.device import compute_device
    from alphaquant.models.rates import measured_rates

    wanted = getattr(execution, "device", "cpu") if stage.gpu else "cpu"
    return measured_rates(compute_device(wanted))


def device_of(stage: Stage, execution: Any) -> str:
    """The device that a stage will use: cpu, or a name that is the same for all processes of a machine."""
    if not stage.gpu:
        return "cpu"
    if pretended := os.environ.get(PRETENDED):
        return pretended
    wanted = getattr(execution, "device", "cpu")
    if wanted == "cpu":
        return "cpu"
    from alphaquant.models.device import device_name

    return device_name(wanted)


def lock_folder() -> Path:
    """Where this user's device locks are."""
    base = _SHARED if os.access(_SHARED, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"alphaquant-{getpass.getuser()}"
