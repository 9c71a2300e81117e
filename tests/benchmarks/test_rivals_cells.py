"""Cells are computed once, tell failures, and are scored by what their values are."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.config import RotationConfig, RunConfig
from alphaquant.errors import ConfigError
from alphaquant.export.rotated import export_rotated
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.models.checkpoint import Checkpoint
from benchmarks.rivals import cells, own, process
from benchmarks.rivals.catalogue import CONTESTANTS
from benchmarks.rivals.cells import Cell, weights_file
from benchmarks.rivals.formats import FORMATS, Format, quantized_linears
from benchmarks.rivals.inputs import Model, calibration_file, load_tokens
from benchmarks.rivals.own import equal_bits
from benchmarks.rivals.scoring import Scorer, WrongWeightsError, most_levels
from tests.tiny import make_model

_INT4 = replace(FORMATS["int4"], group=16)
_DEFAULT = next(one for one in CONTESTANTS if one.key == "llmcompressor:default")
_FAKE_DRIVER = """
import json, sys, pathlib
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
out = pathlib.Path(job["out"])
if job["group"] == 8:
    raise SystemExit("ValueError: no groups of 8")
(out / "saved").mkdir()
(out / "saved" / "model.safetensors").write_bytes(b"x" * 10)
(out / "report.json").write_text(json.dumps({"seconds": 1.5, "versions": {}}))
"""


@pytest.fixture(scope="module", params=["llama", "olmoe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return Model("tiny", make_model(tmp_path / "model"), 16)


@pytest.fixture
def cell(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell whose rival is a script of a few lines, run by this Python."""
    driver = tmp_path / "with_fake.py"
    driver.write_text(_FAKE_DRIVER)
    monkeypatch.setattr(cells, "python_of", lambda rival, cache: Path(sys.executable))
    monkeypatch.setattr(type(cells.RIVALS["llmcompressor"]), "driver", driver)
    file = calibration_file(llama, 4, tmp_path / "tokens")
    return Cell(llama, _DEFAULT, _INT4, file)


def _windows() -> torch.Tensor:
    return torch.randint(256, (3, 24), generator=torch.Generator().manual_seed(0))


def _rounded(folder: Path, scheme: str) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {
        f"{spec.name}.weight": quantize_weight(
            checkpoint.weight(spec.name).float(), Scheme.parse(scheme), name=spec.name
        ).dequantize()
        for spec in quantized_linears(checkpoint.specs)
    }


def test_a_finished_cell_is_kept_and_told(cell: Cell, tmp_path: Path) -> None:
    assert cell.kept(tmp_path) is None
    outcome = cell.compute(tmp_path, limit=60)
    assert outcome["state"] == "done"
    assert (outcome["seconds"], outcome["saved_bytes"]) == (1.5, 10)
    assert outcome["peak_bytes"] > 1e6
    assert outcome["cpu"] > 0
    assert cell.kept(tmp_path) == outcome


def test_a_cell_that_a_live_process_computes_is_busy(cell: Cell, tmp_path: Path) -> None:
    assert not cell.busy(tmp_path)
    cell.compute(tmp_path, limit=60)
    assert not cell.busy(tmp_path)
    mark = cell.folder(tmp_path) / "running.pid"
    mark.write_text(str(os.getpid()))
    assert cell.busy(tmp_path)
    mark.write_text(str(2**22 + 1))  # beyond the largest process id
    assert not cell.busy(tmp_path)


def test_other_settings_tokens_or_threads_are_other_cells(cell: Cell) -> None:
    others = [
        replace(cell, contestant=replace(_DEFAULT, options={"observer": "mse"})),
        replace(cell, format=FORMATS["int4"]),
        replace(cell, threads=2),
    ]
    assert len({one.digest for one in (cell, *others)}) == 4
    assert replace(cell).digest == cell.digest


def test_a_failed_cell_keeps_the_error(cell: Cell, tmp_path: Path) -> None:
    failing = replace(cell, format=Format("int4", "int", 4, 8))
    assert failing.compute(tmp_path, limit=60)["state"] == "failed"
    kept = failing.kept(tmp_path)
    assert kept is not None
    assert kept["why"] == "ValueError: no groups of 8"


def test_a_command_over_its_limit_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    used = process.measured(
        command, tmp_path / "log", environment=process.environment(1), limit=0.2
    )
    assert used.code == -9
    assert used.wall < 30


def test_calibration_windows_are_made_once_and_are_the_same_again(
    llama: Model, tmp_path: Path
) -> None:
    first = calibration_file(llama, 4, tmp_path)
    changed = first.stat().st_mtime_ns
    assert calibration_file(llama, 4, tmp_path) == first
    assert first.stat().st_mtime_ns == changed
    assert load_tokens(first).shape == (4, 16)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_run_may_choose_among_more_windows_that_begin_with_the_rivals(
    llama: Model, tmp_path: Path, foreign: bool
) -> None:
    file = calibration_file(llama, 4, tmp_path / "tokens")
    pool = torch.cat([load_tokens(file) + foreign, torch.zeros(4, 16, dtype=torch.int64)])
    cell_folder, drawn = tmp_path / "cell", tmp_path / "drawn"
    for place in (cell_folder / "store", drawn):
        place.mkdir(parents=True)
    save_file({"tokens": pool}, drawn / "tokens.safetensors")
    stages = [
        {"name": "calibration", "artifact": str(drawn), "seconds": 1},
        {"name": "balance", "artifact": str(drawn), "seconds": 2},
        {"name": "export", "artifact": None, "seconds": 4},
    ]
    (cell_folder / own.LOG).write_text(json.dumps({"stages": stages}))
    (cell_folder / "report.json").write_text(json.dumps({"cpu_seconds": 5}))
    if foreign:
        with pytest.raises(ValueError, match="other tokens than the rivals"):
            own.harvest(cell_folder, file)
    else:
        assert own.harvest(cell_folder, file)["seconds"] == 3


def test_the_original_scores_no_divergence_and_coarse_values_some(
    folder: Path, tmp_path: Path
) -> None:
    scorer = Scorer(folder, {"random": _windows()})
    originals = {
        f"{spec.name}.weight": Checkpoint(folder).weight(spec.name)
        for spec in quantized_linears(Checkpoint(folder).specs)
    }
    found = []
    for number, values in enumerate(
        [originals, _rounded(folder, "int4-g16"), _rounded(folder, "int2-g16")]
    ):
        save_file(values, tmp_path / f"{number}.safetensors")
        rows = scorer.score(tmp_path / f"{number}.safetensors", None).rows
        found.append({row["metric"]: row["value"] for row in rows})
    assert found[0]["kl_mean"] == pytest.approx(0, abs=1e-6)
    assert found[0]["top1_agreement"] == 1
    assert found[0]["kl_mean"] < found[1]["kl_mean"] < found[2]["kl_mean"]
    assert found[0]["perplexity"] == pytest.approx(scorer.perplexities()["random"])


def test_a_rotated_checkpoint_is_scored_whole(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(folder, {"random": _windows()})
    rotated = tmp_path / "rotated"
    rotated.mkdir()
    source = Checkpoint(folder)
    export_rotated(RotatedCheckpoint(source, RotationConfig(kind="hadamard")), rotated)
    rows = scorer.score(rotated / "model.safetensors", None, rotated).rows
    assert {row["metric"]: row["value"] for row in rows}["kl_mean"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(WrongWeightsError, match="values in one group of int2 g16"):
        scorer.score(rotated / "model.safetensors", Format("int2", "int", 2, 16), rotated)


def test_values_of_more_bits_than_claimed_are_found_out(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(folder, {"random": _windows()})
    save_file(_rounded(folder, "int4-g16"), tmp_path / "int4.safetensors")
    assert math.isfinite(scorer.score(tmp_path / "int4.safetensors", _INT4).rows[0]["value"])
    with pytest.raises(WrongWeightsError, match="values in one group of int2 g16"):
        scorer.score(tmp_path / "int4.safetensors", Format("int2", "int", 2, 16))


def test_a_linear_left_out_or_an_unknown_one_is_found_out(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(folder, {"random": _windows()})
    values = _rounded(folder, "int4-g16")
    for name, wrong in (
        ("less", dict(list(values.items())[1:])),
        ("more", values | {"model.layers.9.weight": torch.zeros(1)}),
    ):
        save_file(wrong, tmp_path / f"{name}.safetensors")
    with pytest.raises(WrongWeightsError, match="was not quantized"):
        scorer.score(tmp_path / "less.safetensors", _INT4)
    with pytest.raises(WrongWeightsError, match="has no tensor"):
        scorer.score(tmp_path / "more.safetensors", _INT4)


def test_levels_are_counted_per_group() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, 1.0, 5.0, 6.0, 7.0, 8.0]])
    assert most_levels(weight[:, :4], 4) == 2
    assert most_levels(weight, 4) == 4


def test_a_mixed_plan_may_store_what_the_uniform_one_does(tmp_path: Path) -> None:
    model = Model("moe", make_model(tmp_path / "moe", "olmoe"), 16)
    config = RunConfig.model_validate(
        {
            "allocation": {"policy": "uniform", "default": {"wq": "int4"}},
            "quantization": {"group_size": 16},
        }
    )
    plan = allocate(model.checkpoint.specs, config.allocation, config.quantization)
    assert equal_bits(model, _INT4) == pytest.approx(plan.bits_per_weight, abs=2e-6)
    assert equal_bits(model, _INT4) >= plan.bits_per_weight


def test_groups_halve_until_they_divide_every_width(llama: Model) -> None:
    specs = quantized_linears(llama.checkpoint.specs)  # 32 and 48 columns
    assert FORMATS["int4"].fitting(specs).group == 16
    with pytest.raises(ConfigError, match="no group of mxfp4"):
        FORMATS["mxfp4"].fitting(specs)


def test_a_model_is_named_with_its_folder_and_length(llama: Model) -> None:
    text = f"mine={llama.path}"
    assert Model.parse(f"{text}@128", 512) == Model("mine", llama.path.resolve(), 128)
    assert Model.parse(text, 512).length == 512
    read = llama.reading("a.txt,b.txt,builtin")
    assert (read.calibration, read.evaluation) == ("a.txt", ("b.txt", "builtin"))
    with pytest.raises(ConfigError, match="HELDOUT"):
        llama.reading("a.txt")
    for wrong in (str(llama.path), "mine=/nowhere", f"{text}@long"):
        with pytest.raises(ConfigError):
            Model.parse(wrong, 512)


def test_scored_values_are_those_of_the_driver_or_of_the_dense_checkpoint(tmp_path: Path) -> None:
    assert weights_file(tmp_path) == tmp_path / "saved" / "model.safetensors"
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert load_file(weights_file(tmp_path)).keys() == {"a"}
