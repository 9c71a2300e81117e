"""Reporters that keep the lines they are told."""

from __future__ import annotations

import threading


class Notes:
    """Keeps every line; progress is ignored."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.first = threading.Event()
        """Set when there is a line."""

    def update(self, what: str, done: int, total: int) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Keep the line."""
        self.said.append(message)
        self.first.set()


class NotesOnly(Notes):
    """For work that is too short for progress: refuses to be told any."""

    def update(self, what: str, done: int, total: int) -> None:
        """Fail."""
        raise AssertionError(what)
