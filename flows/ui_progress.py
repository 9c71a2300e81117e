"""Progress inside a stage in the Prefect UI: one artifact per stage, such as `block 3 of 16, about 4 min left`.

Updates only change what a thread of its own sends now and then, so the work neither waits for a server nor
fails with it. A stage that is cached or over at once leaves no artifact.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.context import get_task_and_flow_run_ids

from alphaquant.progress import Reporter, reporting_to
from flows.display import current_display, duration

_INTERVAL = 2.0
"""Seconds between two messages to the server; a stage that takes less sends none."""
_WINDOW = 8
"""Steps whose pace is taken for that of the rest: cached ones at the beginning say nothing about it."""


@contextlib.contextmanager
def progress_in_ui(stage: str, interval: float = _INTERVAL) -> Iterator[None]:
    """Show the progress of a stage on its run's page while the context is open, and wherever else it is shown.

    Does nothing for a server that lives inside this command: nobody can look at it.
    """
    if not PREFECT_API_URL.value():
        yield
        return
    shown = _Shown(stage)
    post = _Post(f"progress-{stage}", shown.text, interval)
    ending = "stopped"
    try:
        with reporting_to(_Tee(current_display(), shown, post)):
            yield
        ending = "done"
    finally:
        shown.ending = ending
        post.close()


class _Tee:
    """Passes progress on to the reporter in force, and notes it for the UI."""

    def __init__(self, first: Reporter, shown: _Shown, post: _Post) -> None:
        self._first = first
        self._shown = shown
        self._post = post

    def update(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` are finished."""
        self._first.update(what, done, total)
        self._shown.update(what, done, total)
        self._post.start()

    def note(self, message: str) -> None:
        """One line the user should see."""
        self._first.note(message)
        self._shown.note(message)
        self._post.start()


class _Steps:
    """One kind of work: how far it is, and when its last steps were done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.times: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    @property
    def done(self) -> int:
        return self.times[-1][1]

    def left(self) -> float | None:
        """Seconds left at the pace of the last steps; None before the first one."""
        (since, first), (until, last) = self.times[0], self.times[-1]
        return (until - since) / (last - first) * (self.total - last) if last > first else None


class _Shown:
    """What the artifact says: the outermost work that goes on, and what goes on inside it."""

    def __init__(self, stage: str) -> None:
        self.ending: str | None = None
        self._stage = stage
        self._started = time.monotonic()
        self._steps: dict[str, _Steps] = {}
        self._note = ""
        self._lock = threading.Lock()

    def update(self, what: str, done: int, total: int) -> None:
        """Note a step; work that begins anew is counted anew."""
        with self._lock:
            steps = self._steps.get(what)
            if steps is None or steps.total != total or done < steps.done:
                self._steps.pop(what, None)
                steps = self._steps[what] = _Steps(total)
            steps.times.append((time.monotonic(), done))

    def note(self, message: str) -> None:
        """Remember what a stage without steps says, such as that it waits for a worker."""
        with self._lock:
            self._note = message

    def text(self) -> tuple[float, str]:
        """Percentage and description."""
        with self._lock:
            spent = duration(time.monotonic() - self._started)
            if self.ending == "done":
                return 100.0, f"{self._stage}: done in {spent}"
            if not self._steps:
                return 0.0, f"{self._stage}: {self._note.removeprefix(f'{self._stage}: ')}"
            going = {what: s for what, s in self._steps.items() if s.done < s.total}
            going = going or dict(list(self._steps.items())[-1:])
            parts = [f"{what} {steps.done} of {steps.total}" for what, steps in going.items()]
            outer = next(iter(going.values()))
            percent = 100 * outer.done / outer.total if outer.total else 100.0
            if self.ending:
                return percent, f"{self._stage}: stopped after {spent} ({', '.join(parts)})"
            if outer.done < outer.total and (left := outer.left()) is not None:
                parts[0] += f", about {_roughly(left)} left"
            return percent, f"{self._stage}: {'; '.join(parts)}"


class _Post:
    """Sends what there is to say, from a thread of its own, at most once per interval."""

    def __init__(self, key: str, text: Callable[[], tuple[float, str]], interval: float) -> None:
        self._key = key
        self._text = text
        self._interval = interval
        self._task_run, self._flow_run = get_task_and_flow_run_ids()
        self._artifact: UUID | None = None
        self._said = ""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread with the first step."""
        if self._thread is None:
            work = copy_context().run  # Prefect's settings go with the context
            self._thread = threading.Thread(
                target=work, args=(self._send_now_and_then,), name=self._key, daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Say how it ended, but do not wait long for a server that does not answer."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(self._interval)

    def _send_now_and_then(self) -> None:
        # a client that tried again for a minute would still be at it when the process ends
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not self._over.wait(self._interval):
                self._send()
            if self._artifact is not None:
                self._send()

    def _send(self) -> None:
        percent, said = self._text()
        if said == self._said:
            return
        # whatever goes wrong here must not harm the work: the next try says more anyway
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            self._put(client, percent, said)
            self._said = said

    def _put(self, client: SyncPrefectClient, percent: float, said: str) -> None:
        if self._artifact is None:
            artifact = ArtifactCreate(
                key=self._key,
                type="progress",
                description=said,
                data=percent,
                flow_run_id=self._flow_run,
                task_run_id=self._task_run,
            )
            self._artifact = client.create_artifact(artifact).id
        else:
            client.update_artifact(self._artifact, ArtifactUpdate(description=said, data=percent))


def _roughly(seconds: float) -> str:
    """Time left for people: seconds below a minute, else minutes."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
