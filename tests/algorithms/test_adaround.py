"""AdaRound: never worse than rounding to nearest, never better than the best choice, near it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms.adaround import adaround
from alphaquant.algorithms.gptq import GptqOptions, gptq, search_of
from alphaquant.formats.grid import neighbours
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import expand, find_scales, quantize_weight
from alphaquant.linalg.hessian import inverse_factor, output_error
from tests.algorithms.test_gptq import problem

SCHEMES = ["int2-g8", "int3-perchannel", "int4-g8-asym", "fp4-g8", "mxfp4", "nvfp4", "nf4"]


def nearest_and_best(
    weight: Tensor, hessian: Tensor, energy: Tensor, scheme: Scheme
) -> tuple[float, float]:
    """Loss of rounding to nearest, and of the best of all ways to go up or down, under the same scales."""
    scales = find_scales(weight, scheme, **search_of("hessian", energy))
    rounded = quantize_weight(weight, scheme, scales).dequantize()
    scale, zero = expand(scales, weight.shape[-1])
    shift = torch.zeros_like(scale) if zero is None else zero
    lower, upper = (
        (grid - shift) * scale for grid in neighbours(weight / scale + shift, scheme.number_format)
    )
    best = torch.full(weight.shape[:1], torch.inf)
    for ups in itertools.product((False, True), repeat=weight.shape[-1]):
        chosen = torch.where(torch.tensor(ups), upper, lower)
        difference = weight - chosen
        best = torch.minimum(best, ((difference @ hessian) * difference).sum(-1))
    return float(output_error(weight - rounded, hessian)), float(best.sum())


def test_the_loss_lies_between_nearest_and_the_best_choice_and_nearer_to_that() -> None:
    missed = []
    for text, seed in itertools.product(SCHEMES, range(2)):
        scheme = Scheme.parse(text)
        weight, hessian = problem(6, 8, seed=seed)
        factor = inverse_factor(hessian, 0.01)
        rounded = adaround(weight, factor.damped, factor.energy, scheme, steps=300).dequantize()
        loss = float(output_error(weight - rounded, factor.damped))
        nearest, best = nearest_and_best(weight, factor.damped, factor.energy, scheme)
        assert best * (1 - 1e-4) <= loss <= nearest * (1 + 1e-5)
        missed.append((loss - best) / (nearest - best))
    assert sum(missed) / len(missed) < 0.3


@pytest.mark.parametrize("text", ["int3-g16", "int4-g16-asym", "mxfp4"])
def test_neighbours_alone_take_much_of_what_gptq_takes_off_nearest(text: str) -> None:
    """GPTQ's codes may go further than to a neighbour, and do where inputs are as correlated as here."""
    scheme = Scheme.parse(text)
    weight, hessian = problem(16, 48, seed=3)
    factor = inverse_factor(hessian, 0.01)
    scales = find_scales(weight, scheme, **search_of("hessian", factor.energy))
    losses = [
        float(output_error(weight - found.dequantize(), factor.damped))
        for found in (
            quantize_weight(weight, scheme, scales),
            gptq(weight, factor, scheme, GptqOptions()).weight,
            adaround(weight, factor.damped, factor.energy, scheme),
        )
    ]
    nearest, compensated, learned = losses
    assert learned < nearest - 0.45 * (nearest - compensated)


def test_a_diagonal_hessian_leaves_nothing_to_learn() -> None:
    weight, _ = problem(8, 32)
    diagonal = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.1
    scheme = Scheme("int4", 16)
    found = adaround(weight, torch.diag(diagonal), diagonal, scheme, "none", steps=50)
    assert torch.equal(found.codes, quantize_weight(weight, scheme).codes)


def test_a_stack_of_experts_is_each_of_them() -> None:
    weight, hessian = problem(4, 32, (3,))
    factor = inverse_factor(hessian, 0.01)
    scheme = Scheme("int3", 16)
    stack = adaround(weight, factor.damped, factor.energy, scheme, steps=60)
    for expert in range(3):
        alone = adaround(
            weight[expert], factor.damped[expert], factor.energy[expert], scheme, steps=60
        )
        # fp32 sums in another order may tip a weight that stands halfway
        assert float((stack[expert].codes != alone.codes).float().mean()) < 0.05


def test_neighbours_enclose_every_value_inside_the_grid() -> None:
    for text in SCHEMES:
        fmt = Scheme.parse(text).number_format
        x = torch.linspace(1.2 * fmt.min_value, 1.2 * fmt.max_value, 999)
        lower, upper = neighbours(x, fmt)
        inside = (x >= fmt.min_value) & (x < fmt.max_value)
        assert bool((lower[inside] <= x[inside]).all())
        assert bool((upper[inside] > x[inside]).all())
        outside = ~inside
        assert torch.equal(lower[outside], upper[outside])
        assert torch.equal(upper[outside], x[outside].clamp(fmt.min_value, fmt.max_value))
