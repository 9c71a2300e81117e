"""What is tried again, how, and what is not."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import ExecutionConfig
from alphaquant.errors import DataError, StoreError
from alphaquant.progress import reporting_to
from alphaquant.store import retry
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Stage, Workbench, run_stage
from tests.notes import Notes


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0))


def _run(
    store: ArtifactStore, body: Any, batch_size: int = 8, *, force: bool = False
) -> tuple[list[str], Any]:
    notes = Notes()
    inputs = {"value": 1, "execution": ExecutionConfig(batch_size=batch_size)}
    with reporting_to(notes):
        result = run_stage(Stage("toy", body, __name__), store, inputs, force=force)
    return notes.said, result


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so(store: ArtifactStore, error: Exception) -> None:
    sizes = []

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        sizes.append(execution.batch_size)
        (out / f"left-by-{execution.batch_size}").write_text("x")
        if execution.batch_size > 2:
            raise error

    notes, result = _run(store, body)
    assert sizes == [8, 4, 2]
    assert notes == [
        "toy: out of memory; trying again with batches of 4",
        "toy: out of memory; trying again with batches of 2",
    ]
    files = [path.name for path in store.path(result.ref).iterdir()]
    assert sorted(files) == ["MANIFEST.json", "left-by-2"]


def test_out_of_memory_with_one_window_is_the_end(store: ArtifactStore) -> None:
    sizes = []

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        sizes.append(execution.batch_size)
        raise OutOfMemoryError("no")

    with pytest.raises(OutOfMemoryError):
        _run(store, body, batch_size=3)
    assert sizes == [3, 1]


def test_a_smaller_batch_leads_to_the_same_key(store: ArtifactStore) -> None:
    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        if execution.batch_size > 1:
            raise OutOfMemoryError("no")
        (out / "x").write_text("x")

    _, first = _run(store, body, batch_size=2)
    _, second = _run(store, body, batch_size=16)
    assert (first.state, second.state) == ("ran", "cached")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError("read"),
        ConnectionResetError("peer"),
    ],
)
def test_passing_failures_of_input_are_tried_twice_more(
    store: ArtifactStore, error: Exception
) -> None:
    tries = []

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        tries.append(execution.batch_size)
        if len(tries) < 3:
            raise error
        (out / "x").write_text("x")

    notes, result = _run(store, body)
    assert tries == [8, 8, 8]
    assert result.state == "ran"
    assert len(notes) == 2
    assert all("trying again in 0 s" in note for note in notes)


def test_a_failure_that_stays_is_raised_after_the_last_try(store: ArtifactStore) -> None:
    tries = []

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        tries.append(1)
        raise TimeoutError("read")

    with pytest.raises(TimeoutError):
        _run(store, body)
    assert len(tries) == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        DataError("no such file"),
        StoreError("the disk is full"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("shape mismatch"),
    ],
)
def test_anything_else_is_not_tried_again(store: ArtifactStore, error: Exception) -> None:
    tries = []

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        _run(store, body)
    assert len(tries) == 1


@pytest.mark.parametrize("force", [False, True])
def test_blocks_of_a_failed_try_are_kept(store: ArtifactStore, force: bool) -> None:
    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        cache = store.block_cache(value=value)
        for index in range(3):
            if cache.get(index, {}) is None:
                if index == 2 and execution.batch_size == 8:
                    raise OutOfMemoryError("no")
                cache.put(index, {}, lambda folder: _write(folder / "block", str(len(cache.refs))))
        (out / "x").write_text("x")

    for _ in range(
        1 + force
    ):  # a forced stage trusts the blocks that it has made itself, and no others
        _, result = _run(store, body, force=force)
        assert (result.units_ran, result.units_cached) == (1, 2)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
