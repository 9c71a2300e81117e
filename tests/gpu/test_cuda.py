"""What a GPU must do as a CPU does it: the same codes, the same quality, memory handed back, devices told apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from alphaquant.algorithms import column_walk, quantize_model, walk_model
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.gptq import gptq
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.quantized_block import load_tuning, save_retuned_block
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.algorithms.tune_model import tune_model
from alphaquant.clock import Clock, listening, timed
from alphaquant.config import AlphaConfig, ExecutionConfig, QuantizationConfig, RotationConfig
from alphaquant.demo import demo_model_path
from alphaquant.evaluation.fidelity import compare
from alphaquant.evaluation.generated import written_windows
from alphaquant.evaluation.predictions import WholeModel
from alphaquant.export.dense import export_dense
from alphaquant.export.rotated import export_rotated
from alphaquant.formats import choice
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS
from alphaquant.formats.weight import quantize_weight
from alphaquant.linalg.hessian import HessianAccumulator, inverse_factor, output_error
from alphaquant.linalg.recorded import reductions
from alphaquant.linalg.spectrum import spectrum
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import device_name
from alphaquant.models.loading import load_model, load_whole
from alphaquant.models.rates import measured_rates
from alphaquant.models.shortcuts import Shortcut, shortcuts
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Stage, Workbench, run_stage
from alphaquant.text.builtin import documents
from alphaquant.text.windows import calibration_tokens, evaluation_windows
from tests.notes import Notes
from tests.tiny import VOCABULARY, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

if torch.cuda.is_available():
    from alphaquant.algorithms import column_kernel
    from alphaquant.formats import search_kernel
    from alphaquant.linalg import sturm_kernel

CPU, GPU = torch.device("cpu"), torch.device("cuda")
_LENGTH = 256


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo_model_path())


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint) -> torch.Tensor:
    texts = [document.text for document in documents("calibration")]
    return calibration_tokens(checkpoint.tokenizer, texts, 16, _LENGTH, 0)


def _plan(checkpoint: Checkpoint, text: str) -> QuantPlan:
    specs = [spec for spec in checkpoint.specs if spec.block is not None]
    return QuantPlan(
        specs, {s.name: Scheme.parse("bf16" if s.role == "router" else text) for s in specs}
    )


def _quantize(
    checkpoint: Checkpoint, tokens: torch.Tensor, folder: Path, device: torch.device, **keys: str
) -> list[Path]:
    folder.mkdir()
    return quantize_blocks(
        checkpoint,
        _plan(checkpoint, "int3-g32"),
        tokens,
        QuantizationConfig.model_validate(keys),
        device=device,
        batch_size=8,
        blocks=FreshBlocks(folder),
    )


@pytest.mark.parametrize("correction", ["none", "stream"])
@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_shortcuts_and_writing_behind_change_no_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, correction: str
) -> None:
    """What attention and MLPs hand on is kept on the device, and a block is written while the next one is solved."""
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type, num_hidden_layers=3))
    windows = torch.randint(0, VOCABULARY, (24, 32), generator=torch.Generator().manual_seed(0))
    made: list[str] = []

    def note(*args: Any) -> list[Shortcut]:
        ways = shortcuts(*args)
        made.extend(way.role for way in ways)
        return ways

    monkeypatch.setattr(walk_model, "shortcuts", note)
    short = _quantize(checkpoint, windows, tmp_path / "short", GPU, correction=correction)
    assert set(made) == ({"o", "down"} if (model_type, correction) == ("llama", "none") else {"o"})
    monkeypatch.setattr(walk_model, "shortcuts", lambda *_: [])
    monkeypatch.setattr(quantize_model, "_writes_behind", lambda *_: False)
    plain = _quantize(checkpoint, windows, tmp_path / "plain", GPU, correction=correction)
    for one, other in zip(short, plain, strict=True):
        ours, theirs = (load_file(folder / "block.safetensors") for folder in (one, other))
        same = torch.cat([(ours[name] == theirs[name]).flatten() for name in theirs])
        # experts' outputs are added up in an order that nobody fixes
        assert float(same.float().mean()) > 0.99 if model_type == "olmoe" else bool(same.all())


def _divergence(checkpoint: Checkpoint, folders: list[Path], out: Path) -> float:
    out.mkdir()
    export_dense(checkpoint, folders, {}, out)
    texts = [document.text for document in documents("test")]
    windows = evaluation_windows(checkpoint.tokenizer, texts, _LENGTH, 16)
    return _kl(checkpoint.path, out, windows, CPU)


def _kl(original: Path, other: Path, windows: torch.Tensor, device: torch.device) -> float:
    first, second = (
        WholeModel(load_model(folder, device), device, 8).predictions(windows)
        for folder in (original, other)
    )
    scores = compare(first, second, windows)
    return next(score.value for score in scores if score.metric == "kl_mean")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "bf16"])
def test_every_format_gives_the_same_codes(name: str) -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    scheme = Scheme.parse(name, group_size=64)
    here, there = quantize_weight(weight, scheme), quantize_weight(weight.to(GPU), scheme)
    same = (here.dequantize() == there.dequantize().cpu()).float().mean()
    assert float(same) > 0.99  # a search may meet a tie that sums in another order decide
    assert torch.allclose(here.dequantize(), there.dequantize().cpu(), atol=0.5)


def test_a_hessian_from_bf16_inputs_loses_nothing() -> None:
    x = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    accumulator = HessianAccumulator(128, GPU)
    for part in x.split(1000):
        accumulator.update(part.to(GPU))
    exact = 2 / 4096 * x.double().T @ x.double()
    assert torch.allclose(accumulator.hessian.double().cpu(), exact, rtol=1e-4, atol=1e-5)


def test_spectra_that_are_solved_together_are_those_of_a_cpu() -> None:
    assert sturm_kernel.runs(GPU)
    weights = torch.randn(20, 300, 130, generator=torch.Generator().manual_seed(0))
    weights[3, :, 60:] = 0  # half of its eigenvalues are zero
    weights[4] *= 1e-20
    here, there = (spectrum(weights.to(device)).cpu() for device in (CPU, GPU))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(one[-1]))


def test_a_recorded_reduction_finds_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(3, 20, 200, 200, generator=generator)
    reductions.forget()
    for matrices in ((square + square.mT) / 20).to(GPU):
        expected = torch.linalg.eigvalsh(matrices[:17].cpu().double())
        found = sturm_kernel.eigenvalues(matrices[:17].clone()).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    fewer = sturm_kernel.eigenvalues(matrices[:5].clone()).cpu()
    torch.testing.assert_close(fewer, expected[:5], rtol=0, atol=1e-5)
    reductions.forget()


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_alpha_on_a_gpu_is_that_of_a_cpu(estimator: str, checkpoint: Checkpoint) -> None:
    config = AlphaConfig.model_validate({"estimator": estimator})
    here, there = (alpha_table(checkpoint, config, device=device) for device in (CPU, GPU))
    pd.testing.assert_frame_equal(here, there, rtol=2e-3)


def test_gptq_leaves_the_same_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 64, 128, generator=generator)
    x = torch.randn(3, 512, 128, generator=generator)
    hessian = 2 / 512 * x.mT @ x
    scheme = Scheme.parse("int3-g32")
    here = gptq(weight, inverse_factor(hessian), scheme)
    there = gptq(weight.to(GPU), inverse_factor(hessian.to(GPU)), scheme)
    assert torch.allclose(here.loss, there.loss.cpu(), rtol=1e-2)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "bf16"])
def test_the_fused_kernels_round_as_torch_does(name: str, moving: bool) -> None:
    for asymmetric in (False, True) if FORMATS[name].is_integer else (False,):
        walk = column_kernel.walk_tile
        assert column_walk._agrees(walk, GPU, FORMATS[name], asymmetric, moving)
        for width in (16, 100, 128, 1024):
            choose = search_kernel.best_candidates
            assert choice._agrees(choose, GPU, FORMATS[name], width, asymmetric, moving)


@pytest.mark.parametrize("text", ["int3-g64", "int4-g32-asym", "nvfp4", "fp6-g96", "mxfp4", "nf4"])
def test_the_fused_kernel_loses_no_more_than_torch(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 333, 416, generator=generator).to(GPU)
    x = torch.randn(5, 2048, 416, generator=generator).to(GPU)
    factor = inverse_factor(2 / 2048 * x.mT @ x)
    losses = []
    for fused in (True, False):
        monkeypatch.setattr(column_walk, "_serves", lambda *_, fused=fused: fused)
        found = gptq(weight, factor, Scheme.parse(text))
        refined, _ = refine(weight, factor.damped, found)
        losses.append(output_error(weight - refined.dequantize(), factor.damped))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)


def test_a_gpu_quantizes_as_well_as_a_cpu_and_corrects_and_tunes(
    tmp_path: Path, checkpoint: Checkpoint, tokens: torch.Tensor
) -> None:
    found = {}
    for name, device, keys in (
        ("cpu", CPU, {}),
        ("gpu", GPU, {}),
        ("corrected", GPU, {"correction": "stream"}),
        ("tuned", GPU, {"tune": "block"}),
    ):
        folders = _quantize(checkpoint, tokens, tmp_path / name, device, **keys)
        found[name] = _divergence(checkpoint, folders, tmp_path / f"{name}-out")
    assert abs(found["gpu"] / found["cpu"] - 1) < 0.1
    assert found["corrected"] < 0.95 * found["gpu"]
    assert found["tuned"] < 0.95 * found["gpu"]
    assert all((load_tuning(f) or {})["after"] < 1 for f in (tmp_path / "tuned").iterdir())


def test_a_gpu_tunes_the_whole_model(
    tmp_path: Path, checkpoint: Checkpoint, tokens: torch.Tensor
) -> None:
    folders = _quantize(checkpoint, tokens, tmp_path / "blocks", GPU)
    config = QuantizationConfig(tune="model", tune_model_steps=20)
    model, tuning = tune_model(checkpoint, folders, tokens, config, device=GPU, batch_size=8)
    assert tuning.kl_after < 0.97 * tuning.kl_before
    after = [tmp_path / f"tuned-{index}" for index in range(len(folders))]
    for index, folder in enumerate(after):
        folder.mkdir()
        save_retuned_block(folder, *model.stored(index))
    before, now = (
        _divergence(checkpoint, found, tmp_path / f"out-{found[0].name}")
        for found in (folders, after)
    )
    assert now < before


def test_a_run_on_a_gpu_repeats_itself(
    tmp_path: Path, checkpoint: Checkpoint, tokens: torch.Tensor
) -> None:
    first, again = (_quantize(checkpoint, tokens, tmp_path / name, GPU) for name in "ab")
    for one, other in zip(first, again, strict=True):
        codes, same = (load_file(folder / "block.safetensors") for folder in (one, other))
        assert all(torch.equal(codes[key], same[key]) for key in codes)


def test_a_model_writes_on_a_gpu_what_it_expects(checkpoint: Checkpoint) -> None:
    """Its words surprise it as much as its entropy says, whatever bf16 makes of single draws."""
    windows = written_windows(checkpoint, 32, 128, 0, GPU, 16)
    assert windows.device == CPU
    model = load_whole(checkpoint, CPU)
    with torch.no_grad():
        predicted = model(windows).logits[:, :-1].log_softmax(-1)
    surprise = -predicted.gather(-1, windows[:, 1:, None]).mean()
    entropy = -(predicted.exp() * predicted).sum(-1).mean()
    assert surprise == pytest.approx(float(entropy), rel=0.05)


def test_predicted_losses_agree(checkpoint: Checkpoint, tokens: torch.Tensor) -> None:
    tables = [
        sensitivity_table(
            checkpoint,
            tokens[:4],
            [Scheme.parse("int3-g32")],
            device=device,
            batch_size=4,
        )
        for device in (CPU, GPU)
    ]
    here, there = (table.set_index("linear")["predicted_loss"] for table in tables)
    assert here.corr(there[here.index], method="spearman") > 0.98


@pytest.fixture
def _little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() + 200 * 2**20
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.mem_get_info()[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("_little_memory")
def test_a_full_device_halves_the_batch_until_it_fits(store: ArtifactStore) -> None:
    sizes, notes = [], Notes()

    def body(out: Path, store: Workbench, *, value: int, execution: ExecutionConfig) -> None:
        sizes.append(execution.batch_size)
        rows = torch.empty(execution.batch_size, 2**26, dtype=torch.uint8, device=GPU)
        (out / "bytes").write_text(str(rows.numel()))

    inputs = {"value": 1, "execution": ExecutionConfig(batch_size=16)}
    with reporting_to(notes):
        run_stage(Stage("toy", body, __name__), store, inputs)
    assert sizes == [16, 8, 4, 2]
    assert "out of memory" in notes.said[0]


def test_a_rotated_model_answers_the_same_on_a_gpu(tmp_path: Path, checkpoint: Checkpoint) -> None:
    out = tmp_path / "rotated"
    out.mkdir()
    export_rotated(RotatedCheckpoint(checkpoint, RotationConfig(kind="hadamard")), out)
    texts = [document.text for document in documents("test")]
    windows = evaluation_windows(checkpoint.tokenizer, texts, _LENGTH, 4)
    assert _kl(checkpoint.path, out, windows, GPU) < 2e-3


def test_a_device_is_known_by_its_uuid_whatever_it_is_called() -> None:
    assert device_name("cuda") == device_name("cuda:0") == device_name("auto")
    assert device_name("cuda").startswith("cuda-")
    assert device_name("cpu") == "cpu"


def test_a_clock_that_waits_charges_the_step_that_worked() -> None:
    matrix = torch.randn(8192, 8192, device=GPU)
    seconds = []
    for wait in (None, torch.cuda.synchronize):
        torch.cuda.synchronize()
        with listening(Clock(wait)) as clock:
            with timed("columns"):
                for _ in range(10):
                    matrix @ matrix
            with timed("errors"):
                torch.cuda.synchronize()
        seconds.append(clock.seconds)
    handed_over, exact = seconds
    assert handed_over["columns"] < handed_over["errors"]
    assert exact["columns"] > 10 * exact["errors"]


def test_tensor_cores_multiply_bf16_faster_than_fp32() -> None:
    rates = measured_rates(GPU)
    assert rates.tensor_flop > 2 * rates.flop > 1e12
    assert rates.moved > 1e11
    assert rates.machine == torch.cuda.get_device_name()
