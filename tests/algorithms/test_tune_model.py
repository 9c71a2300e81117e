from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.algorithms import tuning_memory
from alphaquant.algorithms.quantized_block import (
    load_block,
    load_moved,
    save_retuned_block,
    stored_sizes,
)
from alphaquant.algorithms.tunable_model import Norm, TunableModel
from alphaquant.algorithms.tune_model import ModelTuning, tune_model
from alphaquant.algorithms.tuning_memory import foreseen_sizes, needs_behind
from alphaquant.config import QuantizationConfig
from alphaquant.errors import ConfigError, DataError
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.export.dense import export_dense
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.progress import reporting_to
from tests.algorithms.test_quantize_model import CPU, quantize, uniform, windows
from tests.notes import Notes
from tests.tiny import TYPES, make_model

CONFIG = QuantizationConfig(tune="model", tune_model_steps=12, tune_model_rate=5e-3)


def crude(
    root: Path, model_type: str = "llama", text: str = "int3-g16"
) -> tuple[Checkpoint, list[Path]]:
    checkpoint = Checkpoint(make_model(root / "m", model_type, uneven_norms=True))
    return checkpoint, quantize(checkpoint, uniform(checkpoint, text), root / "b")


def tuned(
    checkpoint: Checkpoint, folders: list[Path], root: Path, config: QuantizationConfig = CONFIG
) -> tuple[list[Path], ModelTuning]:
    model, tuning = tune_model(checkpoint, folders, windows(48), config, device=CPU, batch_size=4)
    after = [root / str(index) for index in range(len(folders))]
    for index, folder in enumerate(after):
        folder.mkdir(parents=True)
        save_retuned_block(folder, *model.stored(index))
    return after, tuning


def held_out() -> torch.Tensor:
    return windows(48)[-6:]


@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_exported_is_as_close_to_the_original_as_was_said(
    tmp_path: Path, model_type: str
) -> None:
    checkpoint, folders = crude(tmp_path, model_type)
    after, tuning = tuned(checkpoint, folders, tmp_path / "t")
    assert tuning.kl_after < tuning.kl_before
    assert tuning.steps > 0
    (tmp_path / "out").mkdir()
    export_dense(checkpoint, after, {}, tmp_path / "out")
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (checkpoint.path, tmp_path / "out")
    ]
    with torch.no_grad():
        a, b = (torch.log_softmax(model(held_out()).logits, -1) for model in models)
    kl = float((a.exp() * (a - b)).sum(-1).mean())
    assert kl == pytest.approx(tuning.kl_after, rel=1e-3)


def test_a_norm_stored_as_its_distance_from_one_moves_in_units_of_what_it_multiplies() -> None:
    stored = torch.tensor([0.0, 0.0, 0.0])
    norm = Norm(stored, torch.device("cpu"), offset=1.0)
    norm.change.data += 0.25
    torch.testing.assert_close(norm.stored(), torch.full((3,), 0.25))


def test_codes_stay_and_scales_and_norms_move(tmp_path: Path) -> None:
    checkpoint, folders = crude(tmp_path)
    after, _ = tuned(checkpoint, folders, tmp_path / "t")
    for old, new in zip(folders, after, strict=True):
        before, now = load_block(old), load_block(new)
        assert now.keys() == before.keys()
        for name, weight in now.items():
            assert torch.equal(weight.codes, before[name].codes)
            assert weight.scheme == before[name].scheme
            assert not torch.equal(weight.scales.scale, before[name].scales.scale)
    norms = dict(load_moved(after[0])) | dict(load_moved(after[1]))
    assert norms.keys() == {*checkpoint.block_norms(0), *checkpoint.block_norms(1)}
    for name, norm in norms.items():
        assert norm.dtype == checkpoint.weight(name).dtype
        assert not torch.equal(norm, checkpoint.weight(name))
    assert not load_moved(folders[0])


def test_a_ruler_takes_norms_in_and_gives_them_back(tmp_path: Path) -> None:
    checkpoint, folders = crude(tmp_path)
    after, _ = tuned(checkpoint, folders, tmp_path / "t")
    ruler = Ruler(checkpoint, held_out(), Room(CPU, 4))
    ruler.put_blocks(folders)
    first = ruler.measure().kl
    ruler.put_blocks(after)
    second = ruler.measure().kl
    assert float(second.mean()) < float(first.mean())
    ruler.put_blocks(folders)
    assert torch.equal(ruler.measure().kl, first)


def test_the_batch_that_memory_allows_changes_nothing(tmp_path: Path) -> None:
    checkpoint, folders = crude(tmp_path)
    results = [
        tune_model(checkpoint, folders, windows(48), CONFIG, device=CPU, batch_size=size)[1]
        for size in (1, 3, 8)
    ]
    for other in results[1:]:
        assert other.kl_after == pytest.approx(results[0].kl_after, rel=1e-4)
        assert other.steps == results[0].steps


def test_nothing_is_kept_where_tuning_only_does_harm(tmp_path: Path) -> None:
    checkpoint, folders = crude(tmp_path)
    harmful = CONFIG.model_copy(update={"tune_model_rate": 5.0})
    after, tuning = tuned(checkpoint, folders, tmp_path / "t", harmful)
    assert (tuning.steps, tuning.kl_after) == (0, tuning.kl_before)
    for old, new in zip(folders, after, strict=True):
        for name, weight in load_block(old).items():
            assert torch.equal(weight.dequantize(), load_block(new)[name].dequantize())


def test_one_window_is_too_few(tmp_path: Path) -> None:
    checkpoint, folders = crude(tmp_path)
    with pytest.raises(DataError, match="at least 2"):
        tune_model(checkpoint, folders, windows(1), CONFIG, device=CPU, batch_size=4)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folders = crude(tmp_path)
    needs = needs_behind(checkpoint, folders, (8, 24), CPU)
    weights = sum(weight.codes.numel() for f in folders for weight in load_block(f).values())
    groups = sum(w.scales.scale.numel() for f in folders for w in load_block(f).values())
    assert needs.weights > weights + 24 * groups
    monkeypatch.setattr(tuning_memory, "free_within", lambda *_: needs.weights - 1)
    with pytest.raises(ConfigError, match=r"tune=model needs .*B free.*tune=block.*are finished"):
        tune_model(checkpoint, folders, windows(8), CONFIG, device=CPU, batch_size=4)
    monkeypatch.setattr(tuning_memory, "free_within", lambda *_: needs.least - 1)
    with pytest.raises(
        ConfigError, match=r"free within execution\.memory_limit=5\.00 GB: .* window"
    ):
        tune_model(
            checkpoint,
            folders,
            windows(8),
            CONFIG,
            device=CPU,
            batch_size=4,
            memory_limit=5 * 10**9,
        )


@pytest.mark.parametrize("text", ["int3-g16", "mxfp4", "nvfp4", "int8-perchannel"])
def test_sizes_are_foreseen_from_the_plan(tmp_path: Path, text: str) -> None:
    checkpoint, folders = crude(tmp_path, "olmoe", text)
    foreseen = foreseen_sizes(uniform(checkpoint, text), checkpoint.blocks)
    assert foreseen == [stored_sizes(folder) for folder in folders]


def test_below_a_limit_windows_are_computed_one_by_one_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folders = crude(tmp_path)
    needs = needs_behind(checkpoint, folders, (24, 24), CPU)
    seen: list[int] = []
    run = TunableModel.loss

    def watched(self: TunableModel, tokens: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        return run(self, tokens, original)

    monkeypatch.setattr(TunableModel, "loss", watched)
    found = []
    for free, most in ((needs.least + 3 * needs.window, 4), (needs.least, 1)):
        monkeypatch.setattr(tuning_memory, "free_within", lambda *_, free=free: free)
        seen.clear()
        notes = Notes()
        with reporting_to(notes):
            _, tuning = tune_model(
                checkpoint, folders, windows(24), CONFIG, device=CPU, batch_size=8, memory_limit=1
            )
        assert max(seen) == most
        assert [f"{most} instead of 4 windows" in note for note in notes.said] == [True] * (
            most < 4
        )
        found.append(tuning)
    assert found[0].kl_after == pytest.approx(found[1].kl_after, rel=1e-2)
    assert found[0].kl_before == pytest.approx(found[1].kl_before, rel=1e-4)
