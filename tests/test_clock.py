from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
import torch

from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.clock import Clock, Step, in_threads, listening, spent_so_far, timed
from alphaquant.config import AlphaConfig, QuantizationConfig
from alphaquant.export.dense import export_dense
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from alphaquant.work import Spent
from tests.tiny import VOCABULARY, make_model

CPU = torch.device("cpu")


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, moved by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_step_is_charged_without_the_steps_inside_it(hand: list[float]) -> None:
    @timed("columns")
    def columns() -> None:
        hand[0] += 2
        with timed("scale search"):
            hand[0] += 5
        hand[0] += 4

    with listening(Clock()) as clock:
        hand[0] += 100  # in no step
        columns()
        columns()
        hand[0] += 100
    assert clock.seconds == {"columns": 12, "scale search": 10}


def test_a_step_that_fails_is_charged_and_left(hand: list[float]) -> None:
    @timed("errors")
    @timed("factor")
    def fail() -> None:
        hand[0] += 3
        raise ValueError("no")

    with listening(Clock()) as clock:
        with pytest.raises(ValueError, match="no"):
            fail()
        hand[0] += 50
        with timed("write"):
            hand[0] += 1
    assert clock.seconds == {"factor": 3, "errors": 0, "write": 1}


def test_spent_so_far_includes_the_step_at_work(hand: list[float]) -> None:
    assert spent_so_far() == {}
    with listening(Clock()), timed("write"):
        hand[0] += 3
        assert spent_so_far() == {"write": Spent(3)}
        hand[0] += 4
        assert spent_so_far() == {"write": Spent(7)}


def test_a_gpu_is_waited_for_at_both_ends_of_a_step(hand: list[float]) -> None:
    queue: list[float] = []

    def wait() -> None:
        hand[0] += sum(queue)
        queue.clear()

    def launch(seconds: float) -> None:
        queue.append(seconds)

    with listening(Clock(wait)) as exact:
        launch(100)
        with timed("factor"):
            launch(7)
        with timed("columns"):
            launch(9)
    assert exact.seconds == {"factor": 7, "columns": 9}


def test_threads_share_the_seconds_of_who_waits_for_them() -> None:
    def work(_: int) -> None:
        with timed("spectrum"):
            time.sleep(0.05)

    with listening(Clock()) as clock:
        began = time.perf_counter()
        with ThreadPoolExecutor(2, initializer=in_threads(2)) as pool:
            list(pool.map(work, range(6)))
        wall = time.perf_counter() - began
    assert 0.149 < clock.seconds["spectrum"] <= wall


def test_nobody_listens_and_nothing_is_kept() -> None:
    with ThreadPoolExecutor(1, initializer=in_threads(1)) as pool:
        assert pool.submit(lambda: spent_so_far()).result() == {}


def test_steps_leave_little_of_the_time_unexplained(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "olmoe"))
    specs = [spec for spec in checkpoint.specs if spec.block is not None]
    tokens = torch.randint(0, VOCABULARY, (4, 32))
    int4 = Scheme.parse("int4-g32")
    schemes = {s.name: Scheme.parse("bf16") if s.role == "router" else int4 for s in specs}
    blocks = FreshBlocks(tmp_path)

    def quantized() -> list[Path]:
        config = QuantizationConfig()
        plan = QuantPlan(specs, schemes)
        return quantize_blocks(
            checkpoint, plan, tokens, config, device=CPU, batch_size=2, blocks=blocks
        )

    stages = {
        "alpha": lambda: alpha_table(checkpoint, AlphaConfig(), 1),
        "sensitivity": lambda: sensitivity_table(checkpoint, tokens, [int4], device=CPU),
        "quantize": quantized,
    }
    found: dict[str, set[str]] = {}
    folders: list[Path] = []
    for name, stage in stages.items():
        with listening(Clock()) as clock:
            began = time.perf_counter()
            made = stage()
            wall = time.perf_counter() - began
        folders = made if isinstance(made, list) else folders
        assert 0.5 * wall < sum(clock.seconds.values()) <= wall, (name, wall, clock.seconds)
        found[name] = set(clock.seconds)
    (tmp_path / "out").mkdir()
    with listening(Clock()) as clock:
        export_dense(checkpoint, folders, {}, tmp_path / "out")
    found["export"] = set(clock.seconds)
    assert found["alpha"] == {"load weights", "spectrum", "moments", "null"}
    assert found["sensitivity"] == {
        "build",
        "load weights",
        "forward",
        "forward and Hessians",
        "factor",
        "scale search",
        "errors",
        "backward",
    }
    assert found["quantize"] == {
        "build",
        "load weights",
        "forward",
        "forward and Hessians",
        "factor",
        "scale search",
        "columns",
        "refinement",
        "errors",
        "write",
    }
    assert found["export"] == {"load weights", "write"}
    assert set().union(*found.values()) <= set(get_args(Step))
