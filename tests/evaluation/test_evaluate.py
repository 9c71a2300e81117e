"""An original that is evaluated once gives the scores that it gave beside each model, whole or block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from alphaquant.config import EvaluationConfig
from alphaquant.errors import ConfigError, ModelError
from alphaquant.evaluation import room as room_module
from alphaquant.evaluation.answers import load_answers, save_answers
from alphaquant.evaluation.baseline import Baseline
from alphaquant.evaluation.evaluate import original_answers, score_checkpoint
from alphaquant.evaluation.fidelity import compare
from alphaquant.evaluation.harness import TaskRun
from alphaquant.evaluation.heldout import write_baseline
from alphaquant.evaluation.predictions import WholeModel
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import BlockRuler, Ruler, ruler_for
from alphaquant.evaluation.scores import Score, scores_table
from alphaquant.models import device
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.footprint import block_bytes, routed_experts, table_bytes, window_bytes
from alphaquant.models.loading import load_model
from alphaquant.progress import reporting_to
from tests.export.packed_models import by_block, exported, make_wide
from tests.notes import Notes

CPU = torch.device("cpu")
ROOM = Room(CPU, 2)
CT: Any = "compressed-tensors"
CONFIG = EvaluationConfig(tasks=())


def confine(monkeypatch: pytest.MonkeyPatch) -> Room:
    """From now on no whole model fits, and blocks of all do."""
    monkeypatch.setattr(room_module, "_FILLED", 1e-9)
    return Room(CPU, 2, memory_limit=1 << 40)


def windows() -> Tensor:
    return torch.randint(256, (5, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["llama", "olmoe"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model, dense and packed forms of its rounded weights, one that asks for activations, and its baseline."""
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = make_wide(root / "model", request.param)
    dense, packed = exported(checkpoint, by_block, CT, root)
    asked = {spec.name: "int8" for spec in checkpoint.plannable if spec.role != "router"}
    asking = exported(checkpoint, by_block, CT, root / "asking", activations=asked, head=True)[1]
    (root / "baseline").mkdir()
    write_baseline(checkpoint, windows(), root / "baseline", ROOM)
    found = {"model": root / "model", "baseline": root / "baseline"}
    return found | {"dense": dense, "packed": packed, "asking": asking}


def scored(folders: dict[str, Path], name: str, room: Room = ROOM) -> pd.DataFrame:
    baseline = Baseline(folders["baseline"])
    return score_checkpoint(
        Checkpoint(folders["model"]), folders[name], CONFIG, baseline, None, room
    )


def test_a_kept_original_gives_the_rows_of_one_in_memory(folders: dict[str, Path]) -> None:
    first, second = (
        WholeModel(load_model(folders[name], CPU), CPU, 2).predictions(windows())
        for name in ("model", "packed")
    )
    pd.testing.assert_frame_equal(
        scored(folders, "packed"), scores_table(compare(first, second, windows())), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["dense", "packed", "asking"])
def test_block_by_block_scores_are_those_of_the_whole_model(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(folders, name)
    monkeypatch.setattr("alphaquant.evaluation.evaluate.load_model", None)  # nothing is loaded
    by_block = scored(folders, name, confine(monkeypatch))
    assert whole.set_index("metric")["value"]["kl_mean"] > 1e-4
    pd.testing.assert_frame_equal(by_block, whole, rtol=1e-5, atol=1e-7)


def test_a_baseline_made_block_by_block_is_the_same(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_baseline(Checkpoint(folders["model"]), windows(), tmp_path, confine(monkeypatch))
    one, other = Baseline(tmp_path), Baseline(folders["baseline"])
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack([*one]), torch.stack([*other]), rtol=1e-3, atol=1e-4)
    assert torch.equal(one.windows, windows())


def test_the_ruler_that_there_is_room_for_measures_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, baseline = Checkpoint(folders["model"]), Baseline(folders["baseline"])
    blocks = sorted((folders["dense"].parent / "blocks").iterdir())
    found = []
    for kind in (Ruler, BlockRuler):
        room = ROOM if kind is Ruler else confine(monkeypatch)
        ruler = ruler_for(checkpoint, windows(), room, baseline.predictions(checkpoint, CPU))
        assert isinstance(ruler, kind)
        assert float(ruler.measure().kl.max()) < 1e-6
        ruler.put_blocks(blocks)
        found.append(ruler.measure())
    assert float(found[0].kl.min()) > 1e-4
    for name in ("kl", "loss", "loss_original", "agrees"):
        torch.testing.assert_close(*(getattr(s, name) for s in found), rtol=1e-4, atol=1e-7)


def test_a_checkpoint_of_another_vocabulary_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = make_wide(tmp_path / "other", "llama", vocab_size=300).path
    with pytest.raises(ModelError, match="260 and 300 tokens"):
        scored(folders | {"other": other}, "other")


def test_tasks_for_which_the_model_is_too_large_are_refused_before_it_is_loaded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, confined = Checkpoint(folders["model"]), confine(monkeypatch)
    with pytest.raises(ConfigError, match=r"evaluation\.tasks=\[\] .*block by block"):
        original_answers(checkpoint, ["builtin_cloze"], 24, None, confined)
    with pytest.raises(ConfigError, match=r"execution\.memory_limit=1\.10 TB of cpu is "):
        score_checkpoint(checkpoint, folders["dense"], CONFIG, None, TaskRun([], {}), confined)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    run = TaskRun(
        [Score("t", "acc", 0.25, 0.1, 0.05, 0.45, "original"), Score("t", "f1", 0.5)],
        {("t", "acc"): {3: 1.0, 1: 0.0}, ("u", "acc"): {0: 1 / 3}},
    )
    save_answers(run, tmp_path)
    found = load_answers(tmp_path)
    assert found.answers == run.answers
    pd.testing.assert_frame_equal(scores_table(found.scores), scores_table(run.scores))


def test_the_batch_follows_from_what_is_free_and_says_so(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, notes = Checkpoint(folders["model"]), Notes()
    each = window_bytes(checkpoint, 24, 4, experts=routed_experts(checkpoint))
    fixed = 6 * 4 * 256 * 260
    for windows_free, batch in ((100, 8), (3.5, 3), (0, 1), (-2, 1)):
        free = int((fixed + windows_free * each) / 0.8)
        monkeypatch.setattr(device, "free_memory", lambda _, free=free: free)
        with reporting_to(notes):
            assert Room(CPU, 8).batch(checkpoint, 24) == batch
    assert len(notes.said) == 3
    assert "3 instead of 8 windows per forward pass" in notes.said[0]
    monkeypatch.setattr(device, "free_memory", lambda _: None)
    assert Room(CPU, 8).batch(checkpoint, 24) == 8


def test_the_whole_model_is_held_where_weights_and_one_window_fit(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(folders["model"])
    weights = checkpoint.whole_bytes(torch.float32)
    assert weights == 4 * sum(p.numel() for p in load_model(checkpoint.path, CPU).parameters())
    monkeypatch.setattr(device, "resident", lambda: 0)
    monkeypatch.setattr(device, "_LIBRARIES", 0)
    for free, limit, holds in (
        (1.2 * weights, None, True),
        (1.05 * weights, None, False),  # nothing could be computed beside them
        (1.2 * weights, weights, False),
        (None, int(1.2 * weights), True),
        (None, None, True),
        (None, weights, False),
    ):
        monkeypatch.setattr(device, "free_memory", lambda _, free=free: free)
        assert Room(CPU, 8, limit).holds(checkpoint) == holds


def test_a_limit_counts_all_that_block_by_block_evaluation_holds(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(folders["model"])
    monkeypatch.setattr(device, "resident", lambda: 0)
    monkeypatch.setattr(device, "_LIBRARIES", 0)
    monkeypatch.setattr(room_module, "_FILLED", 1e-9)
    hidden = 4 * windows().numel() * checkpoint.config.hidden_size
    table, each = table_bytes(checkpoint, 4), window_bytes(checkpoint, 24, 4)
    comparing = hidden + 2 * table + 6 * 4 * 256 * 260
    least = max(comparing, hidden + table + block_bytes(checkpoint, 4) + each)
    for room, refused in ((least * 16 // 15 - 100, True), (2 * least, False)):
        confined = Room(CPU, 2, room)
        if refused:
            with pytest.raises(ConfigError, match=r"hidden states of 5 windows.*evaluation\.limit"):
                write_baseline(checkpoint, windows(), tmp_path, confined)
            assert not list(tmp_path.iterdir())
        else:
            write_baseline(checkpoint, windows(), tmp_path, confined)
    with pytest.raises(ConfigError, match="hidden states of 5000 windows"):
        Room(CPU, 2, 2 * least).check_blocks(checkpoint, 5000, 24)
