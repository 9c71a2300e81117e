"""The GPU benchmark rehearsed on a CPU: a page says what was measured and what was extrapolated."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import measure_model
from benchmarks.gpu_page import publish
from benchmarks.kernels import compare_kernel

CPU = torch.device("cpu")


def test_a_rehearsal_fills_the_page(tmp_path: Path) -> None:
    options = argparse.Namespace(
        blocks=2, samples=2, length=16, batch=2, settings=["int4"], whole=[]
    )
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
        "commit": "abc",
        "rates": {"tensor_flop": 1e12, "flop": 1e12, "moved": 1e9},
        "kernels": [compare_kernel("int4-g128", CPU, matrices=1, size=32)],
        "tiles": [{"batch": 1, "out": 2, "rows": 3, "warps": 4, "s": 0.001}],
        "models": models,
    }
    publish(tmp_path / "gpu.md", [report, report | {"kernels": [], "tiles": []}])
    text = (tmp_path / "gpu.md").read_text()
    assert "2. cpu, torch 2, 1 cores, commit abc" in text
    assert text.count("| 2 of 4 |") == 2
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    # where there is no GPU both are torch
    assert "| 100.0000% | 1.000000 |" in text
    assert "| 1 | 2 | 3 | 4 | 1.000 |" in text


def test_every_block_may_be_quantized() -> None:
    options = argparse.Namespace(
        blocks=2, samples=2, length=16, batch=2, settings=["int4"], whole=["tiny"]
    )
    (row,) = measure_model("tiny", CPU, options)
    assert row["measured_blocks"] == len(row["blocks"]) == 4
    assert row["model"] == pytest.approx(sum(row["blocks"]))
    assert row["alpha"] > 0
    assert row["writing"] > 0
