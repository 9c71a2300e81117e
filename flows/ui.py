"""What the Prefect UI shows of a run besides its tasks: artifacts on the run's page, and a readable failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.states import Failed

from alphaquant.errors import AlphaQuantError, first_line
from flows.ui_failure import failure_page, failure_sentence
from flows.ui_pages import Page, pages
from flows.ui_sweep import sweep_pages

_LOG = logging.getLogger("alphaquant.run")


def show_summary(summary: dict[str, Any]) -> None:
    """Put stages, plan, scores, figures and the way to the report among the flow run's artifacts.

    A run whose products are in place does not fail because they cannot be shown.
    """
    _show(lambda: pages(summary), "shows no results of this run")


def show_sweep(summary: dict[str, Any]) -> None:
    """Put the comparison of all points among the flow run's artifacts; like a run, a sweep does not fail by that."""
    _show(lambda: sweep_pages(summary), "shows no results of this sweep")


def show_failure(error: Exception) -> Any:
    """What a flow returns instead of its value: a failed state with a readable message.

    Prefect raises `error` itself in whoever called the flow.
    """
    _show(lambda: [failure_page(error)], "does not explain this failure")
    for name in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_is_unforeseen)
    return Failed(message=failure_sentence(error), data=error)


def _is_unforeseen(record: logging.LogRecord) -> bool:
    """Keeps the engine from ending a run's log with the traceback of an error that explains itself."""
    return not (record.exc_info and isinstance(record.exc_info[1], AlphaQuantError))


def _show(make: Callable[[], Iterable[Page]], otherwise: str) -> None:
    """Make pages and publish them; what goes wrong is a warning."""
    try:
        for page in make():
            create_markdown_artifact(page.markdown, key=page.key, description=page.headline)
    except Exception as error:  # noqa: BLE001
        _LOG.warning("the Prefect UI %s: %s", otherwise, first_line(error))
