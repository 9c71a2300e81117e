"""What the Prefect UI shows of a run besides its tasks: artifacts on the run's page, and a readable failure."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.states import Failed

from alphaquant.errors import AlphaQuantError, first_line
from flows.ui_failure import failure_page, failure_sentence
from flows.ui_pages import Page, pages

_LOG = logging.getLogger("alphaquant.run")


def show_summary(summary: dict[str, Any]) -> None:
    """Put stages, plan, scores, figures and the way to the report among the flow run's artifacts.

    A run whose products are in place does not fail because they cannot be shown.
    """
    try:
        _publish(pages(summary))
    except Exception as error:  # noqa: BLE001
        _LOG.warning("the Prefect UI shows no results of this run: %s", first_line(error))


def show_failure(error: Exception) -> Any:
    """What a flow returns instead of its value: a failed state with a readable message.

    Prefect raises `error` itself in whoever called the flow.
    """
    try:
        _publish([failure_page(error)])
    except Exception as other:  # noqa: BLE001
        _LOG.warning("the Prefect UI does not explain this failure: %s", first_line(other))
    for name in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_is_unforeseen)
    return Failed(message=failure_sentence(error), data=error)


def _is_unforeseen(record: logging.LogRecord) -> bool:
    """Keeps the engine from ending a run's log with the traceback of an error that explains itself."""
    return not (record.exc_info and isinstance(record.exc_info[1], AlphaQuantError))


def _publish(found: Iterable[Page]) -> None:
    for page in found:
        create_markdown_artifact(page.markdown, key=page.key, description=page.headline)
