from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alphaquant.linalg.hill import hill_alpha
from alphaquant.linalg.spectrum import spectrum


def random_weight(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def weight_with(singular: Tensor, cols: int) -> Tensor:
    """An fp32 matrix `[n, cols]` with about these singular values."""
    generator = torch.Generator().manual_seed(1)
    n = len(singular)
    left = torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn(cols, n, generator=generator).double()).Q
    return ((left * singular.double()) @ right.T).float()


def reference(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.double()).flip(-1).square()


def alpha_error(weight: Tensor, tail_fraction: float = 0.1) -> float:
    expected = hill_alpha(reference(weight), tail_fraction).alpha
    found = hill_alpha(spectrum(weight, tail_fraction=tail_fraction), tail_fraction).alpha
    return abs(found / expected - 1)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("tail_fraction", [0.1, 0.5])
def test_alpha_of_power_law_spectra_equals_a_float64_svd(
    power: float, tail_fraction: float
) -> None:
    singular = torch.arange(1, 151).double() ** -power * torch.linspace(1, 1.3, 150)
    assert alpha_error(weight_with(singular, 200), tail_fraction) < 1e-4


@pytest.mark.parametrize("outlier", [1e1, 1e2, 1e3, 1e5])
def test_alpha_under_one_dominant_direction_equals_a_float64_svd(outlier: float) -> None:
    weight = random_weight(160, 256)
    weight += outlier * torch.outer(random_weight(160, 1, 2)[:, 0], random_weight(256, 1, 3)[:, 0])
    assert alpha_error(weight) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (64, 64)])
def test_eigenvalues_equal_squared_singular_values(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = random_weight(*shape).to(dtype)
    values = spectrum(weight)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, reference(weight.float()), rtol=1e-4, atol=1e-4)


def test_exact_gives_the_float64_svd() -> None:
    weight = random_weight(30, 50)
    torch.testing.assert_close(
        spectrum(weight, exact=True), reference(weight), rtol=1e-12, atol=0.0
    )


def test_a_batch_equals_its_matrices_one_by_one() -> None:
    wide = weight_with(torch.arange(1, 41).double() ** -4, 64)
    batch = torch.stack([random_weight(40, 64), wide, torch.zeros(40, 64)])
    values = spectrum(batch[None])
    assert values.shape == (1, 3, 40)
    for row, weight in zip(values[0], batch, strict=True):
        torch.testing.assert_close(row, spectrum(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scaling_scales_the_eigenvalues_even_where_fp32_squares_overflow(scale: float) -> None:
    weight = random_weight(24, 48)
    torch.testing.assert_close(
        spectrum(weight * scale) / scale**2, spectrum(weight), rtol=1e-5, atol=1e-5
    )


def test_a_rank_deficient_matrix_has_exact_zeros() -> None:
    weight = torch.zeros(20, 30)
    weight[:7] = random_weight(7, 30)
    values = spectrum(weight)
    assert (values[:13] == 0).all()
    assert (values[13:] > 1).all()


def test_a_zero_matrix_has_a_zero_spectrum() -> None:
    assert (spectrum(torch.zeros(5, 8)) == 0).all()


def test_the_weight_is_left_as_it_was() -> None:
    weight = random_weight(8, 8)
    before = weight.clone()
    spectrum(weight)
    assert torch.equal(weight, before)
