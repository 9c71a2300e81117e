"""What Prefect says is shown to people only where it helps them."""

from __future__ import annotations

import logging

import pytest

from flows.prefect_settings import _is_for_people


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("APILogWorker", False),
        ("EventsWorker", False),
        ("prefect._internal.concurrency", False),
        ("prefect.task_runs", False),
        ("prefect.server", True),
        ("alphaquant.run", True),
    ],
)
def test_threads_that_talk_to_the_server_are_not_heard(name: str, shown: bool) -> None:
    record = logging.LogRecord(name, logging.WARNING, "", 0, "1 items remaining...", None, None)
    assert _is_for_people(record) is shown
