"""Many small waits at once: requests to a server, most of whose time is the way there and back."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 16


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of `function` for every item, computed in threads that an interrupt does not wait for."""
    work = list(enumerate(items))
    results: dict[int, R] = {}
    errors: list[BaseException] = []
    if len(work) == 1:
        return [function(work[0][1])]
    work.reverse()

    def labour() -> None:
        while not errors:
            try:
                index, item = work.pop()
            except IndexError:
                return
            try:
                results[index] = function(item)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(labour,), daemon=True)
        for _ in range(min(_THREADS, len(work)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        work.clear()
        raise
    if errors:
        raise errors[0]
    return [results[index] for index in sorted(results)]
