"""What a run needs later, made ready while its Prefect server starts: that takes seconds and leaves a core idle.

Begun sooner, it would only keep this process from starting the server: both import, and share one interpreter.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import flows.dag
from alphaquant.store.records import environment
from flows.orphans import own_servers

_TICK = 0.05
_MODULES = (
    "pandas",
    "pyarrow.parquet",
    "alphaquant.reporting.scores",
    "alphaquant.reporting.notation",
)


@contextlib.contextmanager
def working_ahead() -> Iterator[None]:
    """Get ready in a thread while the context is open; none of it is needed, and nothing is missed if it fails."""
    over = threading.Event()
    thread = threading.Thread(target=_work_ahead, args=(over,), name="working-ahead")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _work_ahead(over: threading.Event) -> None:
    while not _has_server():
        if over.wait(_TICK):
            return
    for step in _steps():
        if over.is_set():
            return
        with contextlib.suppress(Exception):
            step()


def _has_server() -> bool:
    """Whether a server is there already, or its process is. Imports start other, short-lived ones."""
    return bool(os.environ.get("PREFECT_API_URL") or own_servers())


def _steps() -> Iterator[Callable[[], object]]:
    for name in flows.dag.STAGE_NAMES:
        yield getattr(flows.dag, name).code
    for name in _MODULES:
        yield partial(import_module, name)
    yield environment
