from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alphaquant.algorithms.gptq import gptq
from alphaquant.algorithms.lesson import Lesson, next_block, predictions
from alphaquant.algorithms.tune_block import Start, tune_block
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.linalg.hessian import inverse_factor
from alphaquant.models.device import available_cores, training_products

WIDTH, HIDDEN = 24, 32


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "up": torch.randn(HIDDEN, WIDTH, generator=generator) * WIDTH**-0.5,
        "down": torch.randn(WIDTH, HIDDEN, generator=generator) * HIDDEN**-0.5,
    }


def run(given: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Two linears with a bend between, and a residual, as in a decoder block."""
    return x + torch.tanh(x @ given["up"].T) @ given["down"].T


def windows(count: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)) * WIDTH**-0.5
    return torch.randn(count, 24, WIDTH, generator=generator) @ mix


def starts(x: Tensor, text: str = "int3-g8") -> list[Start]:
    original = weights()
    reads = {"up": x, "down": torch.tanh(x @ original["up"].T)}
    found = []
    for name, inputs in reads.items():
        flat = inputs.flatten(0, 1)
        factor = inverse_factor(2 * (flat.T @ flat)[None] / len(flat))
        solution = gptq(original[name][None], factor, Scheme.parse(text))
        found.append(Start([name], solution.weight, solution.compensated))
    return found


def lesson(x: Tensor, **more: Any) -> Lesson:
    return Lesson(run, x, run(weights(), x), **more)


def error(quantized: Mapping[str, Tensor], x: Tensor) -> float:
    return float((run(quantized, x) - run(weights(), x)).square().mean())


def values(found: list[Start]) -> dict[str, Tensor]:
    return {start.names[0]: start.quantized.dequantize()[0] for start in found}


@pytest.mark.parametrize("text", ["int3-g8", "int2-g8", "int4-g8-asym", "mxfp4"])
def test_tuning_lowers_the_error_on_inputs_that_it_never_saw(text: str) -> None:
    unseen = windows(seed=5)
    before, after = 0.0, 0.0
    for seed in (1, 2, 3):  # what one draw of windows brings differs by a tenth
        x = windows(seed=seed)
        begin = starts(x, text)
        config = QuantizationConfig(tune_rate=1e-3)
        tuned, tuning = tune_block(lesson(x), begin, config)
        found = {s.names[0]: w.dequantize()[0] for s, w in zip(begin, tuned, strict=True)}
        before += error(values(begin), unseen)
        after += error(found, unseen)
        assert tuning.after < tuning.before
        assert tuning.steps > 0
    assert after < 0.97 * before


def test_steps_may_be_rounded_and_what_they_brought_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphaquant.models.device.capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("alphaquant.models.device.WIDE_IN_PASSES", WIDTH)
    seen: set[tuple[bool, bool]] = set()

    def watched(given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        with training_products(x):  # as the blocks of a model do
            seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return run(given, x)

    x = windows()
    _, tuning = tune_block(
        Lesson(watched, x, run(weights(), x)), starts(x), QuantizationConfig(tune_rate=1e-3)
    )
    assert seen == {(True, True), (False, False)}
    assert tuning.after < tuning.before


def test_every_core_tunes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    before, seen = torch.get_num_threads(), set()

    def watched(given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return run(given, x)

    x = windows()
    tune_block(Lesson(watched, x, run(weights(), x)), starts(x), QuantizationConfig(tune_steps=2))
    assert seen == {max(before, available_cores())}
    assert torch.get_num_threads() == before


def test_gptq_stays_where_tuning_only_does_harm() -> None:
    x = windows()
    begin = starts(x)
    harmful = QuantizationConfig(tune_rate=50.0, tune_scale_rate=5.0, tune_steps=8)
    kept, tuning = tune_block(lesson(x), begin, harmful)
    assert tuning.steps == 0
    assert tuning.after == tuning.before
    for start, weight in zip(begin, kept, strict=True):
        assert torch.equal(weight.codes, start.quantized.codes)


def test_tuning_makes_up_for_what_blocks_before_broke() -> None:
    x = windows()
    broken = x + 0.1 * windows(seed=7)
    begin = starts(broken)
    target = run(weights(), x)
    tuned, _ = tune_block(Lesson(run, broken, target), begin, QuantizationConfig())
    after = {s.names[0]: w.dequantize()[0] for s, w in zip(begin, tuned, strict=True)}
    assert (run(after, broken) - target).square().mean() < (
        run(values(begin), broken) - target
    ).square().mean()


def test_the_same_inputs_give_the_same_codes() -> None:
    x = windows()
    config = QuantizationConfig(tune_steps=12)
    one, two = (tune_block(lesson(x), starts(x), config)[0] for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.scales.scale, second.scales.scale)


@pytest.mark.parametrize(("count", "steps"), [(1, 3), (2, 1), (9, 5)])
def test_few_windows_and_few_steps_work(count: int, steps: int) -> None:
    x = windows(count)
    config = QuantizationConfig(tune_steps=steps, tune_batch_size=64)
    _, tuning = tune_block(lesson(x), starts(x), config)
    assert 0 <= tuning.steps <= steps
    assert tuning.after <= tuning.before


@pytest.mark.parametrize("size", [1, 3])
def test_windows_that_do_not_fit_at_once_are_summed_up(size: int) -> None:
    x = windows()
    config = QuantizationConfig(tune_steps=8)
    whole = tune_block(lesson(x), starts(x), config)[1]
    parts = tune_block(lesson(x, batch_size=size), starts(x), config)[1]
    assert parts.steps == whole.steps
    assert parts.after == pytest.approx(whole.after, rel=1e-4)


def test_what_the_next_block_makes_of_the_output_counts() -> None:
    """A block that reads few directions asks for these to be right."""
    x, following = windows(), torch.zeros(WIDTH, WIDTH)
    following[:3] = 10 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    targets = run(weights(), x) @ following.T
    sequel = next_block(lambda hidden: hidden @ following.T, targets)
    config = QuantizationConfig(tune_rate=1e-3)
    errors = []
    for taught in (lesson(x), lesson(x, sequel=sequel)):
        tuned, _ = tune_block(taught, starts(x, "int2-g8"), config)
        after = {name: w.dequantize()[0] for name, w in zip(("up", "down"), tuned, strict=True)}
        unseen = windows(seed=5)
        difference = run(after, unseen) - run(weights(), unseen)
        errors.append(float((difference @ following.T).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_the_last_block_learns_the_predictions_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    norm, head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 11, bias=False)
    x, target = windows(4), windows(4, seed=2)
    taught = Lesson(run, x, target, sequel=predictions(norm, head, target), last=True)
    with torch.no_grad():
        a = torch.log_softmax(head(norm(target[:2])), -1)
        b = torch.log_softmax(head(norm(run(weights(), x[:2]))), -1)
        assert float(taught.loss(weights(), [0, 1])) == pytest.approx(
            float((a.exp() * (a - b)).sum(-1).mean()), rel=1e-5
        )
        exact = torch.randn(4, 24, WIDTH, generator=generator)
        assert float(predictions(norm, head, exact)(exact, [0, 1, 2, 3])) < 1e-9
