"""Start a Prefect server and workers, keep them running, and stop them so that nothing is left behind.

A worker that is told to stop kills its flow runs at once and leaves them Running on the server. So the flow
runs are told first, while their workers are halted and can start no other; they end at a safe point and say
so themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from alphaquant.errors import AlphaQuantError
from flows.server.child import Child, adopt_orphans, children_of, end, is_running, kill_group
from flows.server.fleet import deploying, registering, server_child, worker_children
from flows.server.options import CLIENT_AUTH, ServerOptions
from flows.server.reach import answers, check_password

_TICK = 0.1
_PATIENCE = 10
"""Until the user is told that a server does not answer yet."""
_START_SECONDS = 300
"""A first start makes the database, on a slow disk for minutes."""
_FLOW_SECONDS = 30
"""For flow runs to reach a safe point."""
_STOP_SECONDS = 10
"""For the server, and for a worker without flow runs."""
_MOST_PAUSE = 60
_HEALTHY_SECONDS = 60
"""A worker that lived this long had been well: its restarts are counted anew."""


class _Asked(Exception):
    """A signal asked us to stop."""


class Supervisor:
    """One server (unless it is elsewhere) and its workers."""

    def __init__(
        self, options: ServerOptions, environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._environment = environment
        self._say = say
        self._server = None if options.joins else server_child(options, environment)
        self._workers = worker_children(options, environment)
        self._helper: Child | None = None
        self._restarts: dict[str, tuple[float, float]] = {}
        """By worker: when it is to be started again, and the pause that was."""
        self._asked: list[int] = []

    def run(self, when_ready: str) -> int:
        """Start everything, say `when_ready` and follow until a signal comes; returns its number.

        Raises AlphaQuantError when something does not start or the server ends by itself. In any case
        nothing that was started is running afterwards.
        """
        adopt_orphans()
        with self._hearing_signals():
            try:
                self._start()
                self._say(when_ready)
                while True:
                    self._tick()
                    self._follow()
            except _Asked:
                return self._asked[0]
            finally:
                self._stop()

    def _start(self) -> None:
        if self._server:
            self._say(f"server    starting on {self._options.host}:{self._options.port}")
            self._server.start()
        else:
            self._say(f"server    joining {self._options.api_url}")
        began = time.monotonic()
        self._wait_until_healthy(began + _START_SECONDS)
        if self._options.joins:
            check_password(self._options.api_url, self._environment.get(CLIENT_AUTH))
        self._say(f"server    ready after {time.monotonic() - began:.0f} s")
        if self._server:
            self._do(registering(self._options, self._environment))
            self._say("pools     cpu and gpu; runs that go silent are marked Crashed after 90 s")
        for worker in self._workers:
            worker.start()
        if self._server:
            self._do(deploying(self._options, self._environment))
            self._say(
                "deployed  quantize-model/run (balanced, best), sweep/run, experiment/run, stage/gpu"
            )
        self._say(f"workers   {', '.join(worker.name for worker in self._workers) or 'none'}")

    def _wait_until_healthy(self, limit: float) -> None:
        patience = time.monotonic() + _PATIENCE
        while not answers(self._options.api_url):
            if time.monotonic() > patience:
                patience = limit
                self._say(f"server    {self._options.api_url} does not answer yet; still waiting")
            self._tick()
            self._check_server()
            if time.monotonic() > limit:
                raise AlphaQuantError(
                    f"no Prefect server answered at {self._options.api_url} in {_START_SECONDS} s."
                    f"{self._log_of(self._server)}"
                )

    def _do(self, helper: Child) -> None:
        """Run a command to its end."""
        self._helper = helper
        helper.start()
        while helper.status is None:
            self._tick()
            self._check_server()
        self._helper = None
        if helper.status:
            raise AlphaQuantError(
                f"{helper.name} failed with status {helper.status}.{self._log_of(helper)}"
            )

    def _follow(self) -> None:
        self._check_server()
        now = time.monotonic()
        for worker in self._workers:
            if worker.status is None:
                continue
            due, pause = self._restarts.get(worker.name, (0.0, 0.0))
            if due < worker.started:  # its end is news
                pause = (
                    1.0
                    if now - worker.started > _HEALTHY_SECONDS
                    else min(max(2 * pause, 1.0), _MOST_PAUSE)
                )
                self._restarts[worker.name] = (now + pause, pause)
                self._say(
                    f"worker {worker.name} ended with status {worker.status}; starting it again in "
                    f"{pause:.0f} s.{self._log_of(worker)}"
                )
            elif now >= due:
                worker.start()
                self._say(f"worker {worker.name} started again")
        self._adopted()

    def _check_server(self) -> None:
        if self._server and self._server.status is not None:
            raise AlphaQuantError(
                f"the Prefect server ended with status {self._server.status}.{self._log_of(self._server)}"
            )

    def _stop(self) -> None:
        """End flow runs, workers and server, in this order. A second signal kills what is left."""
        running = [worker for worker in self._workers if worker.status is None]
        for worker in running:
            worker.send(signal.SIGSTOP)
        if flows := self._flow_runs(running):
            self._say(
                f"stopping  flow runs still active: {len(flows)}. They end at a safe point, within "
                f"{_FLOW_SECONDS} s; Ctrl-C once more kills them"
            )
        for process in flows:
            end(process, signal.SIGTERM)
        self._wait(lambda: not self._flow_runs(running), _FLOW_SECONDS)
        for process in self._flow_runs(running):
            kill_group(process)
        for child in (*running, *filter(None, [self._helper])):
            child.send(signal.SIGTERM)
            child.send(signal.SIGCONT)
        self._end([*running, *filter(None, [self._helper])])
        if self._server and self._server.status is None:
            self._server.send(signal.SIGTERM)
            self._end([self._server])
        for process in self._adopted():
            kill_group(process)

    def _end(self, children: list[Child]) -> None:
        """Wait for processes that were asked to end; kill those that do not."""
        self._wait(lambda: all(child.status is not None for child in children), _STOP_SECONDS)
        for child in children:
            if child.status is None and child.process:
                for process in (*child.children, child.process.pid):
                    kill_group(process)
                child.process.wait()

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        limit = time.monotonic() + seconds
        while not done() and time.monotonic() < limit and len(self._asked) < 2:
            time.sleep(_TICK)

    def _flow_runs(self, workers: list[Child]) -> list[int]:
        """Processes of flow runs that have not ended."""
        own = [process for worker in workers for process in worker.children if is_running(process)]
        return own + self._adopted()

    def _adopted(self) -> list[int]:
        """Flow runs whose worker was killed; ended ones are let go."""
        ours = (*self._workers, *filter(None, [self._server, self._helper]))
        known = {child.process.pid for child in ours if child.process}
        adopted = [process for process in children_of(os.getpid()) if process not in known]
        for process in adopted:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)
        return [process for process in adopted if is_running(process)]

    def _tick(self) -> None:
        time.sleep(_TICK)
        if self._asked:
            raise _Asked

    @contextlib.contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        def hear(number: int, frame: FrameType | None) -> None:
            self._asked.append(number)

        # being heard here also makes them heard in children, whatever the shell that started us ignores
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # the terminal was closed, and nohup was not asked for
        before = {number: signal.signal(number, hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @staticmethod
    def _log_of(child: Child | None) -> str:
        if child is None:
            return ""
        return f" The end of its log {child.log}:\n{child.tail()}"
