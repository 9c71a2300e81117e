"""A flow that waits, and says what it was told; run by real workers in tests of the server."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow


@flow(name="waiting")
def wait(folder: str) -> None:
    """Write the process's id and device, then wait to be interrupted."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    Path(folder, "started").write_text(f"{os.getpid()} {device}")
    try:
        time.sleep(600)
    except BaseException as error:
        Path(folder, "told").write_text(type(error).__name__)
        raise
