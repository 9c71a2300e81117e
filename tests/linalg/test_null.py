from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alphaquant.linalg.farms import farms_alpha
from alphaquant.linalg.hill import hill_alpha
from alphaquant.linalg.null import (
    alpha_null,
    gaussian_spectrum,
    marchenko_pastur,
    rows_of_tail,
)
from alphaquant.linalg.spectrum import spectrum


@pytest.mark.parametrize(
    ("shape", "fraction", "expected", "within"),
    [
        ((1024, 2048), 0.1, 8.16, 0.1),
        ((2048, 2048), 0.1, 6.43, 0.1),
        ((512, 2048), 0.1, 10.4, 0.3),
        ((64, 2048), 0.1, 17.4, 1.5),
        ((1024, 2048), 0.5, 2.71, 0.02),
        ((2048, 2048), 0.5, 2.12, 0.01),
        ((512, 2048), 0.5, 3.46, 0.03),
    ],
)
def test_the_null_equals_published_simulations(
    shape: tuple[int, int], fraction: float, expected: float, within: float
) -> None:
    assert alpha_null(*shape, fraction)[0] == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("shape", [(64, 128), (32, 300), (150, 150)])
@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_the_null_equals_alphas_of_gaussian_matrices(
    shape: tuple[int, int], estimator: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = []
    for _ in range(40):
        weight = torch.randn(shape, generator=generator)
        fit = farms_alpha(weight) if estimator == "farms" else hill_alpha(spectrum(weight))
        alphas.append(fit.alpha)
    mean, spread = alpha_null(*shape, 0.1, estimator)  # type: ignore[arg-type]
    assert np.mean(alphas) == pytest.approx(mean, abs=5 * spread / math.sqrt(40))
    assert 0.65 < np.std(alphas) / spread < 1.5


def test_the_spread_of_a_large_matrix_is_the_one_of_drawn_spectra() -> None:
    random = np.random.default_rng(5)
    drawn = [
        hill_alpha(torch.from_numpy(gaussian_spectrum(1024, 2048, random))).alpha for _ in range(40)
    ]
    mean, spread = alpha_null(1024, 2048)
    assert np.mean(drawn) == pytest.approx(mean, abs=spread)
    assert 0.65 < np.std(drawn) / spread < 1.5


def test_the_null_of_a_huge_matrix_needs_no_matrix() -> None:
    mean, spread = alpha_null(151_936, 4096)
    assert 20 < mean < 35
    assert 0 < spread < 0.5


def test_drawn_spectra_have_the_moments_of_a_gaussian_matrix() -> None:
    random = np.random.default_rng(0)
    traces = [gaussian_spectrum(20, 50, random) for _ in range(400)]
    assert np.mean([values.sum() for values in traces]) == pytest.approx(20 * 50, rel=0.01)
    squares = np.mean([(values**2).sum() for values in traces])
    assert squares == pytest.approx(20 * 50 * (20 + 50 + 1), rel=0.02)


@pytest.mark.parametrize(
    "shape", [(2, 2), (3, 900), (64, 1000), (256, 300), (512, 512), (512, 100_000)]
)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_the_tail_is_that_of_few_rows(shape: tuple[int, int], share: float) -> None:
    short, long = shape
    size = max(1, round(share * short))
    rows = rows_of_tail(short, long, size)
    assert rows <= short
    for seed in range(10):
        whole, few = (
            gaussian_spectrum(short, long, np.random.default_rng(seed), rows=count)[-size:]
            for count in (None, rows)
        )
        np.testing.assert_allclose(few, whole, rtol=0, atol=1e-12 * whole[-1])
    if share <= 0.1 and short >= 256:
        assert rows < 0.7 * short


def test_the_law_lies_within_its_edges_and_has_the_right_mean() -> None:
    values = marchenko_pastur(400, 900)
    assert values.min() > (30 - 20) ** 2 * 0.99
    assert values.max() < (30 + 20) ** 2 * 1.01
    assert values.mean() == pytest.approx(900, rel=1e-3)


def test_rows_and_columns_are_interchangeable_and_results_repeat() -> None:
    alpha_null.cache_clear()
    first = alpha_null(48, 80, 0.1, "hill", 1)
    alpha_null.cache_clear()
    assert alpha_null(80, 48, 0.1, "hill", 1) == first
    assert alpha_null(80, 48, 0.1, "hill", 2) != first


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_a_single_row_has_no_null_and_two_rows_have_one(estimator: str) -> None:
    assert all(map(math.isnan, alpha_null(1, 64, 0.1, estimator)))  # type: ignore[arg-type]
    assert all(map(math.isfinite, alpha_null(2, 64, 0.1, estimator)))  # type: ignore[arg-type]
