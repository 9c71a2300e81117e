"""The folder of a sweep: ours from the first moment, so that a killed sweep goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from alphaquant.config import RunConfig
from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from flows.points import Point, points_of, read_axis
from flows.sweep_result import hand_over_sweep, mark_sweep, open_sweep


@pytest.fixture
def points(config: RunConfig, store: ArtifactStore, tmp_path: Path) -> list[Point]:
    over = [read_axis("allocation.target_bits=4,6"), read_axis("quantization.method=gptq")]
    return points_of(config, over, store, tmp_path / "out")


def test_a_killed_sweep_is_opened_again(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = open_sweep(str(tmp_path / "out"), config, store)
    mark_sweep(folder, "run-1")
    (folder / "target_bits-4").mkdir()
    assert open_sweep(str(tmp_path / "out"), config, store) == folder


def test_a_foreign_folder_is_refused(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="was not made by alphaquant"):
        open_sweep(str(tmp_path / "out"), config, store)


def test_failed_points_stand_beside_the_others(points: list[Point], tmp_path: Path) -> None:
    scores = {"perplexity": {"original": 9.0, "quantized": 10.0}, "kl": 0.01, "top1_agreement": 0.9}
    done = {
        "run_id": "r",
        "status": "completed",
        "bits_per_weight": 3.9,
        "scores": scores,
        "stages": [{"state": "ran"}, {"state": "cached"}],
        "blocks": {"ran": 2, "cached": 1},
        "checkpoint": "c",
        "report": "h",
    }
    failed = {"status": "failed", "error": "out of patience"}
    mark_sweep(tmp_path / "out", "sweep-1")
    summary = hand_over_sweep(tmp_path / "out", "sweep-1", points, [done, failed])
    assert summary["status"] == "failed"
    assert summary["points"][0]["kl"] == 0.01
    assert summary["points"][1]["error"] == "out of patience"
    table = pd.read_parquet(summary["table"])
    assert list(table["series"]) == ["method gptq", "method gptq"]
    assert list(table["allocation.target_bits"]) == ["4", "6"]
    assert Path(summary["figure"]).is_file()
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert "failed: out of patience" in Path(summary["page"]).read_text()


def test_who_reads_the_summary_while_it_is_replaced_sees_all_of_the_old_one(
    points: list[Point], tmp_path: Path
) -> None:
    failed = {"status": "failed", "error": "no"}
    mark_sweep(tmp_path / "out", "sweep-1")
    with (tmp_path / "out" / "summary.json").open() as reader:
        hand_over_sweep(tmp_path / "out", "sweep-1", points, [failed, failed])
        assert json.load(reader) == {"run_id": "sweep-1", "status": "running"}


def test_a_sweep_without_any_result_has_no_picture(points: list[Point], tmp_path: Path) -> None:
    failed = {"status": "failed", "error": "no"}
    mark_sweep(tmp_path / "out", "sweep-1")
    summary = hand_over_sweep(tmp_path / "out", "sweep-1", points, [failed, failed])
    assert summary["figure"] is None
    assert "![" not in Path(summary["page"]).read_text()
