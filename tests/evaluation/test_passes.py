"""A pass through all blocks keeps to the memory limit, or is refused with what it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alphaquant.config import RouterConfig
from alphaquant.errors import ConfigError
from alphaquant.evaluation import room as room_module
from alphaquant.evaluation.passes import BALANCING, EVALUATING, Pass, pass_needs, repairing
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.progress import reporting_to
from tests.algorithms.test_quantize_model import CPU
from tests.notes import Notes
from tests.tiny import make_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(make_model(tmp_path_factory.mktemp("models") / "m", "olmoe"))


@pytest.mark.parametrize(
    ("method", "learns"),
    [("align", False), ("block", True), ("align+block", True), ("align+kl", False)],
)
def test_routers_repaired_by_block_take_two_blocks_and_both_models_states(
    checkpoint: Checkpoint, method: str, learns: bool
) -> None:
    way = repairing(RouterConfig(method=method, batch_size=4))  # type: ignore[arg-type]
    assert way is not None
    assert (way.blocks, way.together, way.learns) == (2, 4, learns)
    needs = pass_needs(checkpoint, 12, 16, way, 4, waits=True)
    alone = pass_needs(checkpoint, 12, 16, EVALUATING, 4, waits=True)
    states = 4 * 12 * 16 * checkpoint.config.hidden_size
    assert alone.hidden == states
    assert needs.hidden == 7 * states
    assert (needs.window > alone.window) == learns
    # heads come when the blocks are gone
    assert needs.least == needs.hidden + 2 * needs.head + needs.comparing
    large = replace(needs, block=needs.comparing)
    assert large.least == large.hidden + large.block + 4 * large.window
    few = pass_needs(checkpoint, 2, 16, way, 4, waits=True)
    assert few.together == 2, "no more windows than there are"


@pytest.mark.parametrize("method", ["none", "kl", "ce"])
def test_routers_trained_together_make_no_pass_of_this_kind(method: str) -> None:
    assert repairing(RouterConfig(method=method)) is None  # type: ignore[arg-type]


def test_states_that_wait_elsewhere_do_not_count(checkpoint: Checkpoint) -> None:
    assert pass_needs(checkpoint, 12, 16, BALANCING, 4, waits=False).hidden == 0


def test_windows_are_as_many_as_fit_and_a_note_says_whose_they_are(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs, notes = pass_needs(checkpoint, 40, 16, BALANCING, 4, waits=True), Notes()
    free = int((needs.hidden + needs.block + 3.5 * needs.window) / 0.8)
    monkeypatch.setattr(room_module, "free_within", lambda *_: free)
    with reporting_to(notes):
        assert Room(CPU, 8, 1).batch_by_block(checkpoint, 40, 16, BALANCING) == 3
    assert "calibration.balance: 3 instead of 8 windows" in notes.said[0]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (BALANCING, r"calibration\.balance needs .* for the embedding, .* lower calibration\.bal"),
        (
            repairing(RouterConfig(method="align")),
            r"router\.method=align needs .* for 8 windows, .* for two heads.* lower .*router\.batch",
        ),
    ],
)
def test_one_byte_too_few_is_refused_with_the_keys_to_lower(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, way: Pass, said: str
) -> None:
    least = pass_needs(checkpoint, 40, 16, way, 4, waits=True).least
    monkeypatch.setattr(room_module, "free_within", lambda *_: least)
    Room(CPU, 8, 1).check_blocks(checkpoint, 40, 16, way)
    monkeypatch.setattr(room_module, "free_within", lambda *_: least - 1)
    with pytest.raises(ConfigError, match=said):
        Room(CPU, 8, 1).check_blocks(checkpoint, 40, 16, way)
