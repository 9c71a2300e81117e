from __future__ import annotations

import itertools

import pytest
import torch

from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.rtn import rtn
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import find_scales, quantize_weight
from alphaquant.linalg.hessian import inverse_factor, output_error

SCHEMES = [
    "int2-g16",
    "int3-perchannel",
    "int4-g16",
    "int4-g16-asym",
    "int8-perchannel",
    "fp4-g16",
    "fp6-g16",
    "fp8-perchannel",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4",
]


def problem(
    rows: int = 8, cols: int = 48, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a Hessian of correlated inputs with uneven energy."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(*batch, cols, cols, generator=generator) * cols**-0.5
    scale = torch.rand(*batch, 1, cols, generator=generator) * 3 + 0.1
    x = torch.randn(*batch, 4 * cols, cols, generator=generator) @ mix * scale
    weight = torch.randn(*batch, rows, cols, generator=generator)
    return weight, 2 * x.mT @ x / x.shape[-2]


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("act_order", [False, True])
def test_loss_identity_holds(text: str, act_order: bool) -> None:
    weight, hessian = problem()
    factor = inverse_factor(hessian, 0.01)
    found = gptq(weight, factor, Scheme.parse(text), GptqOptions(act_order=act_order))
    quantized, loss = found.weight, found.loss
    exact = output_error(weight - quantized.dequantize(), factor.damped)
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("act_order", [False, True])
def test_a_diagonal_hessian_makes_gptq_round_to_nearest(text: str, act_order: bool) -> None:
    weight, _ = problem()
    hessian = torch.diag(torch.rand(48) + 0.1)
    scheme = Scheme.parse(text)
    options = GptqOptions(act_order=act_order, scale_search="none")
    quantized = gptq(weight, inverse_factor(hessian, 0.0), scheme, options).weight
    assert torch.equal(quantized.dequantize(), rtn(weight, scheme).dequantize())


@pytest.mark.parametrize("text", ["int3-g16", "int4-g16-asym", "mxfp4"])
@pytest.mark.parametrize("static_groups", [False, True])
def test_lazy_block_size_does_not_matter(text: str, static_groups: bool) -> None:
    weight, hessian = problem()
    factor = inverse_factor(hessian.double(), 0.01)
    results = [
        gptq(
            weight,
            factor,
            Scheme.parse(text),
            GptqOptions(size, act_order=False, static_groups=static_groups),
        ).weight.dequantize()
        for size in (1, 16, 32, 128)
    ]
    # fp32 sums in another order may flip a rare tie, not more
    for result in results[1:]:
        assert float((result != results[0]).float().mean()) < 0.02


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("text", ["int3-g16", "mxfp4", "int4-g16-asym", "nvfp4"])
def test_experts_in_a_batch_equal_experts_in_a_loop(text: str, act_order: bool) -> None:
    weight, hessian = problem(batch=(3,))
    scheme = Scheme.parse(text)
    options = GptqOptions(act_order=act_order)
    together = gptq(weight, inverse_factor(hessian), scheme, options)
    for index in range(3):
        alone = gptq(weight[index], inverse_factor(hessian[index]), scheme, options)
        values = together.weight[index].dequantize()
        assert float((values != alone.weight.dequantize()).float().mean()) < 0.02
        torch.testing.assert_close(together.loss[index], alone.loss, rtol=2e-2, atol=1e-6)


def optimal_brain_quantization(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, low: int, high: int
) -> torch.Tensor:
    """Columns in order; after each, the rest moves by the explicit inverse of the remaining Hessian."""
    w = weight.clone()
    out = torch.empty_like(w)
    for i in range(w.shape[1]):
        inverse = torch.linalg.inv(hessian[i:, i:])
        q = (w[:, i] / scale).round().clamp(low, high) * scale
        error = (w[:, i] - q) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0][None, :]
        out[:, i] = q
    return out


def test_equals_optimal_brain_quantization_in_the_same_order() -> None:
    weight, hessian = problem(rows=4, cols=12, seed=3)
    factor = inverse_factor(hessian.double(), 0.01)
    scheme = Scheme.parse("int4-perchannel")
    options = GptqOptions(act_order=False, scale_search="none")
    quantized = gptq(weight, factor, scheme, options).weight
    scale = find_scales(weight, scheme).scale[:, 0].double()
    expected = optimal_brain_quantization(weight.double(), factor.damped, scale, -8, 7)
    torch.testing.assert_close(quantized.dequantize().double(), expected, rtol=1e-6, atol=1e-6)


def test_lies_between_the_exhaustive_optimum_and_round_to_nearest() -> None:
    scheme = Scheme.parse("int2-perchannel")
    gptq_total = rtn_total = 0.0
    for seed in range(20):
        weight, hessian = problem(rows=1, cols=5, seed=seed)
        factor = inverse_factor(hessian, 0.01)
        options = GptqOptions(act_order=False, scale_search="none")
        loss = gptq(weight, factor, scheme, options).loss
        scale = find_scales(weight, scheme).scale
        codes = torch.tensor(list(itertools.product([-2.0, -1.0, 0.0, 1.0], repeat=5)))
        best = min(float(output_error(weight - c[None] * scale, factor.damped)) for c in codes)
        assert best <= float(loss) * (1 + 1e-4)
        gptq_total += float(loss)
        rounded = quantize_weight(weight, scheme).dequantize()
        rtn_total += float(output_error(weight - rounded, factor.damped))
    assert gptq_total < rtn_total


@pytest.mark.parametrize("text", ["int2-g16", "int3-g16", "int4-g16", "mxfp4", "nvfp4"])
def test_beats_round_to_nearest_with_the_same_scales(text: str) -> None:
    weight, hessian = problem(rows=32, cols=64)
    factor = inverse_factor(hessian)
    scheme = Scheme.parse(text)
    quantized = gptq(weight, factor, scheme).weight
    diagonal = factor.damped.diagonal()
    rounded = quantize_weight(weight, scheme, search="mse", importance=diagonal).dequantize()
    ours = output_error(weight - quantized.dequantize(), hessian)
    assert float(ours) < float(output_error(weight - rounded, hessian))


def test_dead_columns_keep_their_rounded_weight() -> None:
    weight, hessian = problem()
    hessian[5] = 0
    hessian[:, 5] = 0
    scheme = Scheme.parse("int4-g16")
    quantized = gptq(
        weight, inverse_factor(hessian), scheme, GptqOptions(scale_search="none")
    ).weight
    assert torch.equal(quantized.dequantize()[:, 5], rtn(weight, scheme).dequantize()[:, 5])


def test_predicted_loss_is_close_to_what_gptq_leaves() -> None:
    weight, hessian = problem(rows=64, cols=96)
    factor = inverse_factor(hessian)
    for text, tolerance in (("int3-g32", 0.15), ("int4-g32", 0.12), ("int8-g32", 0.12)):
        scheme = Scheme.parse(text)
        options = GptqOptions(act_order=False, scale_search="none")
        loss = gptq(weight, factor, scheme, options).loss
        rounded = quantize_weight(weight, scheme).dequantize()
        predicted = ((weight - rounded).square() * factor.conditional_variance).sum()
        assert float(predicted) == pytest.approx(float(loss), rel=tolerance)


def test_ragged_last_group_is_quantized_like_any_other() -> None:
    weight, hessian = problem(cols=40)
    for text in ("int4-g16", "mxfp4", "nvfp4"):
        quantized = gptq(weight, inverse_factor(hessian), Scheme.parse(text)).weight
        error = (quantized.dequantize() - weight).square()
        assert float(error[:, 32:].mean()) < 3 * float(error[:, :32].mean())
