from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alphaquant.linalg.hill import MIN_TAIL, hill_alpha, tail_count
from alphaquant.linalg.spectrum import spectrum


def pareto(count: int, exponent: float) -> Tensor:
    """Quantiles of p(λ) ∝ λ^-exponent, ascending."""
    ranks = torch.arange(count, 0, -1, dtype=torch.float64) / count
    return ranks ** (-1 / (exponent - 1))


@given(st.floats(1.5, 8), st.integers(200, 3000), st.sampled_from([0.05, 0.1, 0.5]))
def test_the_exponent_of_a_pareto_spectrum_is_recovered(
    exponent: float, count: int, fraction: float
) -> None:
    fit = hill_alpha(pareto(count, exponent), fraction)
    assert abs(fit.alpha - exponent) < 5 / math.sqrt(fit.tail_size) * (exponent - 1)
    assert abs(fit.alpha / exponent - 1) < 0.25


def test_a_long_pareto_spectrum_gives_its_exponent_closely() -> None:
    fit = hill_alpha(pareto(20_000, 3.0))
    assert fit.alpha == pytest.approx(3.0, abs=0.01)
    assert fit.ks < 0.01
    assert fit.tail_size == 2000
    assert fit.xmin == pytest.approx(10 ** (1 / 2), rel=1e-3)


def test_the_formula_is_the_one_of_the_definition() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 5.0, 9.0] + [10.0 + i for i in range(16)])
    tail = values.sort().values[-10:].double()
    below = values.sort().values[-11].double()
    expected = 1 + 10 / torch.log(tail / below).sum().item()
    assert hill_alpha(values.sort().values, 0.1).alpha == pytest.approx(expected)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (1024, 0.1, 102),
        (64, 0.1, MIN_TAIL),
        (8, 0.1, 7),
        (1024, 0.5, 512),
        (2, 0.1, 1),
        (1, 0.1, 0),
    ],
)
def test_the_tail_is_a_share_of_at_least_ten_and_leaves_a_reference(
    count: int, fraction: float, expected: int
) -> None:
    assert tail_count(count, fraction) == expected


@pytest.mark.parametrize(("size", "expected"), [(5, 5), (300, 300), (9999, 499)])
def test_a_fixed_tail_size_takes_the_place_of_the_share(size: int, expected: int) -> None:
    assert hill_alpha(pareto(500, 3.0), tail_size=size).tail_size == expected


def test_a_spectrum_that_is_no_power_law_fits_worse() -> None:
    uniform = torch.linspace(1, 2, 500)
    assert hill_alpha(uniform, 0.5).ks > 5 * hill_alpha(pareto(500, 3.0), 0.5).ks


@pytest.mark.parametrize(
    "values",
    [torch.zeros(20), torch.ones(20), torch.tensor([3.0]), torch.tensor([0.0] * 19 + [4.0])],
    ids=["zero", "constant", "one value", "rank one"],
)
def test_a_spectrum_without_a_sloping_tail_has_no_alpha_and_no_tail(values: Tensor) -> None:
    fit = hill_alpha(values)
    assert math.isnan(fit.alpha)
    assert math.isnan(fit.ks)
    assert fit.tail_size == 0
    assert math.isfinite(fit.xmin)


def test_an_orthogonal_matrix_has_no_alpha() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(128, 128, generator=generator)).Q
    assert hill_alpha(spectrum(basis)).tail_size == 0


def test_zeros_that_reach_into_the_tail_shorten_it() -> None:
    values = torch.cat([torch.zeros(90), pareto(6, 3.0)])
    fit = hill_alpha(values)
    assert fit.tail_size == 5
    assert fit.alpha == pytest.approx(hill_alpha(pareto(6, 3.0)).alpha)


def test_alpha_does_not_change_under_scale_transposition_and_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 160, generator=generator) @ torch.diag(torch.linspace(0.1, 3, 160))
    left = torch.linalg.qr(torch.randn(96, 96, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(160, 160, generator=generator)).Q
    alpha = hill_alpha(spectrum(weight)).alpha
    for changed in (weight * 0.01, weight.T, left @ weight @ right):
        assert hill_alpha(spectrum(changed)).alpha == pytest.approx(alpha, rel=1e-4)


def test_a_heavier_tail_has_a_smaller_alpha() -> None:
    alphas = [hill_alpha(pareto(1000, exponent)).alpha for exponent in (2.0, 3.0, 5.0)]
    assert alphas == sorted(alphas)
