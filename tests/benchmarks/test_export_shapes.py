"""Random checkpoints have a real model's names and shapes; what a process took is told apart by stage."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model
from benchmarks import export_shapes
from benchmarks.export_shapes import Look, random_checkpoint


def test_a_random_checkpoint_is_a_whole_model_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_shapes, "_SHARD_BYTES", 200_000)
    folder = random_checkpoint(tmp_path / "model", "tiny", 1)
    checkpoint = Checkpoint(folder)
    assert len({entry.file for entry in checkpoint.entries.values()}) > 1
    assert checkpoint.blocks == 1
    assert sum(spec.expert is not None for spec in checkpoint.specs) == 12
    weight = checkpoint.weight("model.layers.0.mlp.experts.3.down_proj")
    assert (weight.dtype, tuple(weight.shape)) == (torch.bfloat16, (128, 64))
    assert float(weight.float().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert load_model(folder, torch.device("cpu")).config.num_experts == 4


def test_a_stage_has_the_memory_of_its_time() -> None:
    looks = [Look(when, taken, 2 * taken) for when, taken in ((100.0, 5), (200.0, 9), (300.0, 4))]
    when = {
        key: datetime.fromtimestamp(at, UTC).isoformat()
        for key, at in (("started", 150), ("ended", 250))
    }
    assert export_shapes._peak(looks, when) == (9, 18)
    assert export_shapes._peak(looks, when | {"started": when["ended"]}) == (0, 0)
