"""Locks: one computation for many askers, and nobody waits for the dead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from alphaquant.progress import reporting_to
from alphaquant.store import lock
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.lock import locked
from alphaquant.store.stage import Stage, Workbench, run_stage
from tests.notes import Notes

_CONTEXT = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")


def _hold(root: Path, held: Event) -> None:
    with locked(root, "key", "alpha"):
        held.set()
        time.sleep(60)


def test_a_killed_holder_frees_its_lock_and_the_waiter_was_told(tmp_path: Path) -> None:
    held = _CONTEXT.Event()
    holder = _CONTEXT.Process(target=_hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(10)
    notes = Notes()

    def kill() -> None:
        assert notes.first.wait(10)
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with reporting_to(notes), locked(tmp_path, "key", "alpha"):
        pass
    killer.join()
    holder.join()
    assert len(notes.said) == 1
    assert f"alpha: waiting for process {holder.pid} on " in notes.said[0]


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path, "key", "alpha"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_no_lock_file_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path, "key", "alpha"):
        raise RuntimeError
    with locked(tmp_path, "key", "alpha"):
        assert len(list((tmp_path / "locks").iterdir())) == 1
    assert list((tmp_path / "locks").iterdir()) == []


def _slow_body(out: Path, bench: Workbench) -> None:
    with (bench.artifacts.root / "calls").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    (out / "result").write_text("1")


def _run(root: Path, states: "multiprocessing.queues.Queue[str]") -> None:  # noqa: UP037
    result = run_stage(Stage("slow", _slow_body, __name__), ArtifactStore(root), {})
    states.put(result.state)


def test_two_processes_that_want_the_same_compute_it_once(tmp_path: Path) -> None:
    states = _CONTEXT.Queue()
    processes = [_CONTEXT.Process(target=_run, args=(tmp_path, states)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert sorted([states.get(timeout=5), states.get(timeout=5)]) == ["cached", "ran"]
    assert (tmp_path / "calls").read_text() == "x"


def _killed_body(out: Path, bench: Workbench) -> None:
    cache = bench.block_cache()
    for index in range(3):
        if cache.get(index, {}) is None:
            if index == 2 and not (bench.artifacts.root / "second").exists():
                (bench.artifacts.root / "second").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            cache.put(index, {}, lambda to, i=index: _text(to / "block", i))  # type: ignore[misc]
    _text(out / "done", 1)


def _text(path: Path, number: int) -> None:
    path.write_text(str(number))


def test_a_killed_stage_resumes_behind_its_last_finished_block(tmp_path: Path) -> None:
    stage = Stage("slow", _killed_body, __name__)
    process = _CONTEXT.Process(target=run_stage, args=(stage, ArtifactStore(tmp_path), {}))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    result = run_stage(stage, ArtifactStore(tmp_path), {})
    assert (result.units_ran, result.units_cached) == (1, 2)


def test_a_wait_in_a_thread_ends_when_the_main_thread_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "given_up", threading.Event())
    ended: list[type[BaseException]] = []

    def wait() -> None:
        try:
            with locked(tmp_path, "key", "alpha"):
                pass
        except KeyboardInterrupt as error:
            ended.append(type(error))

    with locked(tmp_path, "key", "alpha"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        lock.given_up.set()
        waiter.join(10)
        assert ended == [KeyboardInterrupt]
