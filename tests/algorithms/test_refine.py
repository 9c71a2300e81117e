from __future__ import annotations

import itertools

import pytest
import torch

from alphaquant.algorithms.gptq import gptq
from alphaquant.algorithms.refine import refine
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, find_scales, quantize_weight
from alphaquant.linalg.hessian import inverse_factor, output_error
from tests.algorithms.test_gptq import SCHEMES, problem


def loss(weight: torch.Tensor, quantized: QuantizedWeight, hessian: torch.Tensor) -> torch.Tensor:
    return output_error(weight - quantized.dequantize(), hessian)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("act_order", [False, True])
def test_neither_refit_nor_sweeps_ever_cost_anything(text: str, act_order: bool) -> None:
    weight, hessian = problem(rows=16, cols=72, batch=(3,))
    factor = inverse_factor(hessian)
    start = gptq(weight, factor, Scheme.parse(text)).weight
    before = loss(weight, start, factor.damped)
    for refit, sweeps in ((True, 0), (False, 1), (True, 1), (True, 3)):
        found, _ = refine(weight, factor.damped, start, sweeps=sweeps, refit=refit)
        after = loss(weight, found, factor.damped)
        assert bool((after <= before * (1 + 1e-5)).all()), (refit, sweeps)
    assert float(after.sum()) < float(before.sum())
