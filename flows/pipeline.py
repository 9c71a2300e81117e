"""The Prefect flow: the pipeline with every stage as a task, so that the UI shows and starts it.

Prefect keeps no results here: a task looks its key up in the store, and a hit is shown as Cached. The order
of the stages is in `flows/dag.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, tags
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from alphaquant.config import RunConfig
from alphaquant.errors import AlphaQuantError, ConfigError
from alphaquant.store.runs import new_run_id
from flows.dag import StageName
from flows.dispatch import run_on_pool
from flows.preflight import open_store, prepare
from flows.runner import Request, run, run_here
from flows.stage_task import run_as_task
from flows.ui import show_failure, show_summary

_DEFAULT = RunConfig()
# nobody watches for heartbeats on a server that ends with the command, and the thread that sends them is
# waited for at the end of each flow, up to a second
_SHORT_LIVED = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
_prepared: ContextVar[Request | None] = ContextVar("prepared", default=None)


class ServerGone(AlphaQuantError):
    """The Prefect server stopped answering."""


@flow(name="quantize-model", flow_run_name=new_run_id)
def quantize_model(
    config: RunConfig = _DEFAULT,
    force: list[StageName] = [],  # noqa: B006
    store: str = "",
    out: str = "",
) -> dict[str, Any]:
    """Compress a model to mixed precision, score it against the original and write a report.

    Args:
        config: What to do, section by section. Empty fields keep their defaults.
        force: Stages to run even when the store has their result.
        store: Folder of the artifact store; empty means ALPHAQUANT_STORE or artifacts/.
        out: Folder for the checkpoint and the report; empty means runs/MODEL-BITS.
    """
    logging.getLogger("alphaquant").setLevel(logging.INFO)
    try:
        request = _prepared.get() or prepare(
            config, open_store(store), Path(out) if out else None, tuple(force)
        )
        where = run_on_pool if request.config.execution.where == "pool" else run_here
        request = replace(request, run_id=str(flow_run.name))
        summary = run(request, partial(run_as_task, runner=where))
    except Exception as error:  # noqa: BLE001
        return show_failure(error)  # type: ignore[no-any-return]
    show_summary(summary)
    return summary


def run_prepared(request: Request) -> dict[str, Any]:
    """Run the flow for a caller that has checked its request already.

    Raises ServerGone when the Prefect server cannot be told how the run ended.
    """
    token = _prepared.set(request)
    try:
        with on_server():
            return quantize_model(
                request.config,
                list(request.force),  # type: ignore[arg-type]
                request.store.location,
                str(request.out) if request.out else "",
            )
    finally:
        _prepared.reset(token)


@contextlib.contextmanager
def on_server() -> Iterator[None]:
    """Call a flow as a command does: marked as ours, and with what may be wrong with the server put into words.

    Raises ConfigError when PREFECT_API_URL names no server that answers, ServerGone when it stops answering.
    """
    # by the tag, crash detection knows which runs send heartbeats
    quick = temporary_settings(_SHORT_LIVED if not PREFECT_API_URL.value() else {})
    try:
        with quick, tags("alphaquant"):
            yield
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} does not answer. Check PREFECT_API_URL and that "
            "the server runs; without PREFECT_API_URL, and for a run with --no-prefect, none is needed."
        ) from error
    except httpx.TransportError as error:
        server = PREFECT_API_URL.value() or "http://127.0.0.1"
        if not str(error.request.url).startswith(server):
            raise  # a stage's own trouble with the network
        raise ServerGone(
            f"the Prefect server at {server} does not answer ({type(error).__name__}). Finished stages and "
            "blocks are kept: the same command goes on when the server is back, a run also with --no-prefect."
        ) from error
