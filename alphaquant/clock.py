"""Where time goes: the library names the steps of long work, whoever wants to know listens with a clock.

A step's seconds are its own: what a step inside it takes counts for that one, so that steps add up. Nothing is
measured while nobody listens.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Literal, TypeAlias

from alphaquant.work import Spent, Work

Step: TypeAlias = Literal[
    "text",
    "build",
    "load weights",
    "forward",
    "forward and Hessians",
    "original's blocks",
    "backward",
    "rotation",
    "factor",
    "scale search",
    "columns",
    "refinement",
    "learned rounding",
    "channel scales",
    "correction",
    "tuning",
    "errors",
    "spectrum",
    "moments",
    "null",
    "scores",
    "intervals",
    "tasks",
    "pack",
    "write",
    "report",
]
"""Every step there is, about in the order in which work goes through them."""


class Clock:
    """Adds up the wall seconds of each step of one thread's work, and what each had to do.

    A GPU works behind the program: without `wait` a step gets the seconds until its work was handed over, and the
    step that first needs a result pays for those before it. `wait` (such as `torch.cuda.synchronize`) is called
    wherever steps begin and end; then seconds are exact, and steps no longer overlap.
    """

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self.seconds: dict[Step, float] = {}
        """By step, in the order in which they were first left."""
        self.work: dict[Step, Work] = {}
        """By step, where a formula tells."""
        self._wait = wait
        self._threads = 1
        self._current: Step | None = None
        self._since = 0.0
        self._lock = threading.Lock()

    def turn_to(self, step: Step | None) -> Step | None:
        """Charge the time since the last turn to the step at work, and go on with another; returns the former."""
        if self._wait is not None:
            self._wait()
        with self._lock:
            now, before = time.perf_counter(), self._current
            if before is not None:
                spent = (now - self._since) / self._threads
                self.seconds[before] = self.seconds.get(before, 0.0) + spent
            self._current, self._since = step, now
            return before

    def so_far(self) -> dict[Step, float]:
        """Seconds by step up to this moment."""
        if self._wait is not None:
            self._wait()
        with self._lock:  # another thread may be at work by this clock: it is read, not turned
            seconds = dict(self.seconds)
            if self._current is not None:
                spent = (time.perf_counter() - self._since) / self._threads
                seconds[self._current] = seconds.get(self._current, 0.0) + spent
            return seconds

    def spent(self) -> dict[Step, Spent]:
        """Seconds and work by step up to this moment."""
        seconds = self.so_far()
        steps = dict.fromkeys([*seconds, *self.work])
        return {s: Spent(seconds.get(s, 0.0), self.work.get(s, Work())) for s in steps}

    def add_work(self, work: Mapping[Step, Work]) -> None:
        """Note what steps have to do."""
        for step, more in work.items():
            self.work[step] = self.work.get(step, Work()) + more

    def of_thread(self, threads: int) -> Clock:
        """A clock for one of so many threads that work at once: each of its seconds is its share of one here."""
        part = Clock(self._wait)
        part.seconds, part._lock, part._threads = self.seconds, self._lock, threads
        return part


_clock: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextlib.contextmanager
def listening(clock: Clock) -> Iterator[Clock]:
    """Let `clock` listen while the context is open."""
    token = _clock.set(clock)
    try:
        yield clock
    finally:
        _clock.reset(token)


@contextlib.contextmanager
def timed(name: Step) -> Iterator[None]:
    """What happens inside belongs to a step; decorates functions too."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    outer = clock.turn_to(name)
    try:
        yield
    finally:
        clock.turn_to(outer)


def note_work(amounts: Callable[[], Mapping[Step, Work]]) -> None:
    """Tell who listens what steps have to do; nothing is computed for nobody."""
    clock = _clock.get()
    if clock is not None:
        clock.add_work(amounts())


def spent_so_far() -> dict[Step, Spent]:
    """Seconds and work by step of the clock that listens; empty without one."""
    clock = _clock.get()
    return clock.spent() if clock else {}


def in_threads(threads: int) -> Callable[[], None]:
    """What each of `threads` threads has to call first, so that their steps are heard by who listens here.

    The thread that waits for them must be in no step itself, or that one would be charged as well.
    """
    clock = _clock.get()

    def begin() -> None:
        _clock.set(clock.of_thread(threads) if clock else None)

    return begin
