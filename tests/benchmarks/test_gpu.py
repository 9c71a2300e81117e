"""The GPU benchmark rehearsed on a CPU: a page says what was measured and what was extrapolated."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from alphaquant.models.checkpoint import Checkpoint
from benchmarks.gpu import alpha_seconds, measure_model, page
from benchmarks.kernels import compare_kernel
from benchmarks.steps import random_checkpoint

CPU = torch.device("cpu")


def test_a_rehearsal_fills_the_page() -> None:
    options = argparse.Namespace(blocks=2, samples=2, length=16, batch=2, settings=["int4"])
    models = list(measure_model("tiny", CPU, options))
    (row,) = models
    assert len(row["blocks"]) == 2
    assert row["model"] == pytest.approx(row["blocks"][0] + 3 * row["blocks"][1])
    assert row["floor"]["columns"] > 0
    report = {
        "device": "cpu",
        "torch": "2",
        "cores": 1,
        "windows": 2,
        "length": 16,
        "blocks": 2,
        "rates": {"tensor_flop": 1e12, "flop": 1e12, "moved": 1e9},
        "kernels": [compare_kernel("int4-g128", CPU, matrices=1, size=32)],
        "tiles": [{"batch": 1, "out": 2, "rows": 3, "warps": 4, "s": 0.001}],
        "models": models,
    }
    text = page(report)
    assert "2 blocks were quantized; a whole model is extrapolated" in text
    assert "(4 blocks)" in text
    # where there is no GPU both are torch
    assert "| 100.0000% | 1.000000 |" in text
    assert "| 1 | 2 | 3 | 4 | 1.000 |" in text


def test_alpha_is_measured_on_some_linears_of_each_shape(tmp_path: Path) -> None:
    checkpoint = Checkpoint(random_checkpoint(tmp_path / "model", "tiny", CPU, 2))
    assert 0 < alpha_seconds(checkpoint) < 60
