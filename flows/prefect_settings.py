"""Settings under which an embedded Prefect server starts, keeps its history and stays quiet.

Call `prepare()` before prefect is imported. What the user has set wins. The same values stand in
`prefect.toml` for servers that are started from the project's folder.
"""

from __future__ import annotations

import logging
import os

DEFAULTS = {
    # the first start makes the database; 20 s are too few on a small machine
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # with batches of 1 the server stops before it has written down the last task runs
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "alphaquant",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # crash detection waits for three of them
    # what is said before a run begins and after it has ended belongs to no run
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
"""For every process that is, or talks to, a Prefect server of ours."""
# loggers of the threads that send logs and events to the server; named outside "prefect"
_SENDERS = ("APILogWorker", "EventsWorker", "prefect._internal")


def prepare() -> None:
    """Set the defaults in the environment, where a server's process inherits them."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def quiet_terminal(handlers: list[logging.Handler]) -> None:
    """After prefect was imported: the terminal shows `handlers` only; the server still gets every log.

    Prefect reports a failed task with its traceback; who runs the flow reports the error itself.
    """
    root = logging.getLogger()
    root.handlers = [*handlers]
    for handler in handlers:
        handler.addFilter(_is_for_people)


def _is_for_people(record: logging.LogRecord) -> bool:
    if record.name.startswith(("prefect.flow_runs", "prefect.task_runs", *_SENDERS)):
        return False
    return not record.name.startswith("prefect") or record.levelno >= logging.WARNING
