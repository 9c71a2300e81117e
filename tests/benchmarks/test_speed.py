"""Ratios are to the faster rival of the same case, slopes are exponents, and models are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy.stats import kurtosis

from alphaquant.models.checkpoint import Checkpoint
from benchmarks.speed.figure import draw, draw_scaling
from benchmarks.speed.models import Design, described, random_checkpoint
from benchmarks.speed.page import page, ratios
from benchmarks.speed.runs import Run, read, write
from benchmarks.speed.scaling import AXES, STAGES, slopes

_TINY = Design(hidden=32, intermediate=64, blocks=2, heads=2, experts=8)
_MIB = 2**20


def _run(program: str, seconds: float, mib: int, setting: str = "default", **more: str) -> Run:
    return Run(
        part="quantize",
        case="llama, 8 x 16 tokens",
        program=program,
        setting=setting,
        seconds=seconds,
        cpu_seconds=2 * seconds,
        wall=seconds + 5,
        cpu=2 * seconds + 5,
        peak_bytes=(400 + mib) * _MIB,
        bare_bytes=400 * _MIB,
        load=0.5,
        commit="abc",
        **more,
    )


@pytest.fixture
def runs() -> list[Run]:
    own = [_run("AlphaQuant", seconds, 80) for seconds in (8.0, 10.0, 90.0)]
    return [
        *own,
        _run("GPTQModel 7", 40.0, 100),
        _run("llm-compressor 0", 80.0, 50),
        _run("llm-compressor 0", 0.0, 0, failed="MemoryError"),
    ]


def test_ratios_are_those_of_medians_to_the_faster_rival(runs: list[Run]) -> None:
    own = ratios(runs).set_index("program").loc["AlphaQuant"]
    assert own["repeats"] == 3
    assert own["time_ratio"] == own["cpu_ratio"] == pytest.approx(0.25)
    assert own["memory_ratio"] == pytest.approx(0.8)
    assert ratios(runs).set_index("program")["time_ratio"].drop("AlphaQuant").isna().all()


def test_page_marks_what_misses_its_aim_and_tells_failures(runs: list[Run]) -> None:
    text = page(runs, "", None, None)
    line = next(line for line in text.splitlines() if line.startswith("| AlphaQuant"))
    assert line.endswith("| 0.25 | 0.25 | **0.80** |")
    assert "- llm-compressor 0, llama, 8 x 16 tokens: MemoryError" in text
    assert "35.4 million weights" in text


def test_runs_come_back_from_their_table(runs: list[Run], tmp_path: Path) -> None:
    write(tmp_path / "speed.parquet", runs)
    assert read(tmp_path / "speed.parquet") == runs
    assert read(tmp_path / "none.parquet") == []


def _grown(power: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"axis": axis, "value": value, "stage": stage, "seconds": 3e-3 * value**power}
            for axis, along in AXES.items()
            for value in along.values
            for stage in STAGES
        ]
    )


@pytest.mark.parametrize(("power", "faster"), [(1.0, False), (1.3, True)])
def test_slopes_are_exponents_and_width_may_grow(power: float, faster: bool) -> None:
    found = slopes(_grown(power))
    assert found["slope"].to_list() == pytest.approx([power] * len(found))
    assert (found["faster"] == (faster & (found["axis"] != "width"))).all()
    assert ("Faster than linear" in page([], "", None, found)) == faster


def test_figures_are_drawn(runs: list[Run]) -> None:
    grown = _grown(1.0)
    for picture in (draw(runs), draw_scaling(grown, slopes(grown))):
        assert picture.startswith(b"\x89PNG")


def test_random_weights_have_tails_and_the_size_that_is_told(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "moe", _TINY)
    checkpoint = Checkpoint(folder)
    linears = [s for s in checkpoint.specs if s.role not in ("router", "lm_head")]
    told = f"{sum(spec.size for spec in linears) / 1e6:.1f} million"
    assert told in described(_TINY)
    weights = torch.cat([checkpoint.weight(spec.name).float().flatten() for spec in linears])
    assert kurtosis(weights) > 1
    again = random_checkpoint(tmp_path / "again", replace(_TINY))
    one, other = (Checkpoint(f).weight(linears[0].name) for f in (folder, again))
    assert torch.equal(one, other)
