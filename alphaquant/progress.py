"""Progress of long work: the library reports units done, whoever runs it decides how to show them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """Receives progress; `flows/display.py` draws it."""

    def update(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` are finished."""

    def note(self, message: str) -> None:
        """One line the user should see."""


class _Silent:
    def update(self, what: str, done: int, total: int) -> None:
        return None

    def note(self, message: str) -> None:
        return None


_reporter: ContextVar[Reporter] = ContextVar("reporter", default=_Silent())  # noqa: B039


def reporter() -> Reporter:
    """The reporter in force."""
    return _reporter.get()


@contextlib.contextmanager
def reporting_to(target: Reporter) -> Iterator[None]:
    """Send progress to `target` while the context is open."""
    token = _reporter.set(target)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Keep the progress of inner work to itself while the context is open."""
    with reporting_to(_Silent()):
        yield


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items`, reporting after each one that it is done."""
    target = reporter()
    target.update(what, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        target.update(what, done, total)
