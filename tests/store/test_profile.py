"""Seconds of steps: kept beside results, with the block that took them, and in no key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from alphaquant.clock import note_work, timed
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.place import Place
from alphaquant.store.profile import profiles, stage_profile
from alphaquant.store.records import load_record
from alphaquant.store.stage import OTHER, Skipped, Stage, Workbench, run_stage
from alphaquant.work import Rates, Work

BLOCKS = 4
RATES = Rates(10.0, 100.0, 1e3, 1e3, 1e3, "toy machine")


class Toy:
    """A stage of four blocks on a clock that is moved by hand; block k takes (k + 1) * speed seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.speed, self.dies_at = 0.0, 1.0, BLOCKS
        self.stage = Stage("quantize", self.body, "alphaquant.work")
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def body(self, out: Path, store: Workbench, *, seed: int) -> Skipped | None:
        if seed < 0:
            return Skipped("nothing to do")
        with timed("load weights"):
            self.now += 5
        cache = store.block_cache(seed=seed)
        for index in range(BLOCKS):
            if cache.get(index, {}):
                continue
            self.now += 0.5  # in no step
            with timed("columns"):
                self.now += (index + 1) * self.speed
            note_work(lambda: {"columns": Work(flop=4)})
            if index == self.dies_at:
                raise KeyboardInterrupt
            with timed("write"):
                cache.put(index, {}, self.write)
        self.now += 2
        (out / "done").write_text("done")
        return None

    def write(self, folder: Path) -> None:
        self.now += 0.25
        (folder / "block").write_text("block")

    def run(self, store: ArtifactStore, **options: Any) -> Any:
        return run_stage(self.stage, store, {"seed": 1}, **options)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(monkeypatch)


def test_steps_add_up_to_what_the_stage_took(store: ArtifactStore, toy: Toy) -> None:
    result = toy.run(store)
    (found,) = profiles(store, [result])
    assert found.seconds == pytest.approx(result.seconds) == pytest.approx(5 + 10 + 4 * 0.75 + 2)
    seconds = {step: spent.seconds for step, spent in found.steps.items()}
    assert seconds == pytest.approx({"load weights": 5, "columns": 10, "write": 1, OTHER: 4})
    assert [b["columns"].seconds for b in found.blocks] == pytest.approx([1, 2, 3, 4])
    assert [b[OTHER].seconds for b in found.blocks] == pytest.approx([0.5] * 4)
    assert found.steps["columns"].work == Work(flop=16)


def test_blocks_of_an_interrupted_attempt_keep_their_seconds(
    store: ArtifactStore, toy: Toy
) -> None:
    toy.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        toy.run(store)
    toy.dies_at, toy.speed = BLOCKS, 10.0
    resumed = toy.run(store)
    assert (resumed.units_ran, resumed.units_cached) == (2, 2)
    (found,) = profiles(store, [resumed])
    assert [b["columns"].seconds for b in found.blocks] == pytest.approx([1, 2, 30, 40])
    assert found.steps["load weights"].seconds == pytest.approx(5)
    assert found.steps[OTHER].seconds == pytest.approx(4 * 0.5 + 2)


def test_a_stage_that_was_found_has_the_profile_of_its_computation(
    store: ArtifactStore, toy: Toy
) -> None:
    (computed,) = profiles(store, [toy.run(store)])
    found = toy.run(store)
    assert found.state == "cached"
    assert profiles(store, [found]) == [computed]


def test_seconds_are_in_no_key_and_in_no_artifact(store: ArtifactStore, toy: Toy) -> None:
    first = toy.run(store)
    toy.speed = 7.0
    second = toy.run(store, force=True)
    assert (second.key, second.ref) == (first.key, first.ref)
    (found,) = profiles(store, [second])
    assert found.steps["columns"].seconds == pytest.approx(70)


def test_the_floor_is_that_of_the_machine_that_computed(store: ArtifactStore, toy: Toy) -> None:
    from contextlib import nullcontext

    result = toy.run(store, claim=lambda *_: nullcontext(Place(rates=RATES)))
    (found,) = profiles(store, [result])
    assert found.rates == RATES
    assert found.floor(found.steps) == pytest.approx(16 / 10)
    assert found.floor(found.blocks[0]) == pytest.approx(4 / 10)


def test_what_was_not_timed_has_no_profile(store: ArtifactStore, toy: Toy) -> None:
    skipped = run_stage(toy.stage, store, {"seed": -1})
    assert profiles(store, [skipped]) == []
    assert stage_profile(store, "quantize", "") is None
    assert stage_profile(store, "quantize", "0" * 40) is None


def test_records_from_before_there_were_clocks_can_be_read(store: ArtifactStore, toy: Toy) -> None:
    result = toy.run(store)
    name = f"keys/quantize/{result.key}.json"
    old = store.read_json(name)
    for field in ("steps", "unit_keys"):
        del old[field]
    store.write_json(name, old)
    assert load_record(store, "quantize", result.key) is not None
    assert profiles(store, [result]) == []
