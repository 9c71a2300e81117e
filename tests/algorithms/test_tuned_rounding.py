from __future__ import annotations

import pytest
import torch

from alphaquant.algorithms.gptq import gptq
from alphaquant.algorithms.tuned_rounding import TunedRounding
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.linalg.hessian import inverse_factor
from tests.algorithms.test_gptq import SCHEMES, problem


def started(text: str) -> tuple[QuantizedWeight, TunedRounding]:
    weight, hessian = problem(rows=5, cols=48, batch=(2,))
    found = gptq(weight, inverse_factor(hessian), Scheme.parse(text))
    return found.weight, TunedRounding(found.weight, found.compensated)


@pytest.mark.parametrize("text", [*SCHEMES, "int3-g20", "int4-g32-asym"])
def test_tuning_begins_where_gptq_ended(text: str) -> None:
    start, rounding = started(text)
    torch.testing.assert_close(rounding.weight(), start.dequantize())
    stored = rounding.quantized()
    assert torch.equal(stored.codes, start.codes)
    assert torch.equal(stored.dequantize(), start.dequantize())


@pytest.mark.parametrize("text", ["int3-g16", "int4-g16-asym", "mxfp4", "fp6-g16"])
def test_gradients_pass_straight_through_the_rounding(text: str) -> None:
    start, rounding = started(text)
    weights = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    (rounding.weight() * weights).sum().backward()
    scale = start.scales.effective.repeat_interleave(start.scheme.group_width(48), -1)[..., :48]
    gradient = rounding.latent.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.flatten(-2)[..., :48], weights * scale)


def test_the_gradient_of_a_scale_is_that_of_the_values_it_scales() -> None:
    start, rounding = started("int3-g16")
    (rounding.weight() * 2).sum().backward()
    assert rounding.factor is not None
    assert rounding.factor.grad is not None
    expected = 2 * start.dequantize().unflatten(-1, (3, 16)).sum(-1, keepdim=True)
    torch.testing.assert_close(rounding.factor.grad, expected)


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_coarse_scales_stay(text: str) -> None:
    assert started(text)[1].factor is None


@pytest.mark.parametrize("text", SCHEMES)
def test_whatever_a_step_does_is_stored_exactly(text: str) -> None:
    start, rounding = started(text)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        rounding.latent += torch.randn(rounding.latent.shape, generator=generator)
        if rounding.factor is not None:
            rounding.factor += 0.1 * torch.randn(rounding.factor.shape, generator=generator)
    rounding.confine()
    stored = rounding.quantized()
    assert not torch.equal(stored.codes, start.codes)
    again = QuantizedWeight.from_tensors("w", stored.tensors("w"), stored.scheme)
    assert torch.equal(again.dequantize(), stored.dequantize())
    torch.testing.assert_close(stored.dequantize(), rounding.weight().detach(), rtol=2**-7, atol=0)


def test_latents_are_kept_within_reach_of_the_grid() -> None:
    _, rounding = started("int4-g16-asym")
    with torch.no_grad():
        rounding.latent.fill_(1e6)
    rounding.confine()
    top = rounding.quantized().codes
    assert (top == 15).all()
    with torch.no_grad():
        rounding.latent -= 1.01
    assert (rounding.quantized().codes == 14).all()
