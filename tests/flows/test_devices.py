"""The device lock: one computation per device, and none for work that wants no GPU."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from alphaquant.config import ExecutionConfig
from alphaquant.store.stage import Stage
from flows import devices
from flows.devices import PRETENDED, claim_device, device_of

GPU = Stage("quantize", lambda out, store: None, __name__, gpu=True)
CPU = Stage("allocate", lambda out, store: None, __name__)
INPUTS = {"execution": ExecutionConfig()}


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "lock_folder", lambda: tmp_path)


def test_a_cpu_stage_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PRETENDED, "gpu0")
    with claim_device(CPU, INPUTS, "job") as place:
        assert (place.device, place.job) == ("cpu", "job")
        assert list(tmp_path.rglob("*.lock")) == []


def test_a_gpu_stage_on_the_cpu_holds_nothing(tmp_path: Path) -> None:
    assert device_of(GPU, ExecutionConfig(device="cpu")) == "cpu"
    with claim_device(GPU, {"execution": ExecutionConfig(device="cpu")}):
        assert list(tmp_path.rglob("*.lock")) == []


def _hold(folder: Path, device: str, told: str) -> None:
    devices.lock_folder = lambda: folder
    os.environ[PRETENDED] = device
    with claim_device(GPU, INPUTS):
        Path(told).write_text("held")
        time.sleep(60)


def test_a_device_whose_holder_was_killed_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    holder = multiprocessing.get_context("fork").Process(
        target=_hold, args=(tmp_path, "gpu0", str(told))
    )
    holder.start()
    while not told.exists():
        time.sleep(0.01)
    monkeypatch.setenv(PRETENDED, "gpu1")
    with claim_device(GPU, INPUTS) as place:  # another device is not waited for
        assert place.device == "gpu1"
    monkeypatch.setenv(PRETENDED, "gpu0")
    began = time.monotonic()
    os.kill(holder.pid or 0, signal.SIGKILL)
    with claim_device(GPU, INPUTS) as place:
        assert place.device == "gpu0"
    assert time.monotonic() - began < 30
    holder.join()


def test_two_stages_take_turns_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setenv(PRETENDED, "gpu0")
    spans = []

    def work() -> None:
        with claim_device(GPU, INPUTS):
            began = time.monotonic()
            time.sleep(0.05)
            spans.append((began, time.monotonic()))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    spans.sort()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
