from __future__ import annotations

import pytest
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from alphaquant.linalg.recorded import reductions
from alphaquant.linalg.tridiagonal import tridiagonal


def symmetric(size: int) -> Tensor:
    """A plain matrix, one with an outlier channel, one of half the rank, a diagonal one and one of zeros."""
    x = torch.randn(5, size, 2 * size, generator=torch.Generator().manual_seed(size))
    x[1, 0] *= 50
    x[2, size // 2 :] = 0
    found = x @ x.mT / (2 * size)
    found[3] = torch.diag_embed(torch.arange(size).float())
    found[4] = 0
    return found


def spectra(diagonal: Tensor, beside: Tensor) -> Tensor:
    if diagonal.shape[-1] == 1:
        return diagonal.double()
    found = [
        torch.from_numpy(eigvalsh_tridiagonal(d.double().numpy(), e.double().numpy()))
        for d, e in zip(diagonal, beside, strict=True)
    ]
    return torch.stack(found)


@pytest.mark.parametrize("size", [1, 2, 3, 31, 32, 33, 65, 150])
def test_the_eigenvalues_stay_those_of_the_matrix(size: int) -> None:
    matrices = symmetric(size)
    expected = torch.linalg.eigvalsh(matrices.double())
    found = spectra(*tridiagonal(matrices.clone()))
    worst = (found - expected).abs().amax(-1) / expected[:, -1].clamp(min=1e-30)
    assert float(worst.max()) < 2e-6


def test_in_fp64_nothing_is_lost() -> None:
    matrices = symmetric(70).double()
    expected = torch.linalg.eigvalsh(matrices)
    found = spectra(*tridiagonal(matrices.clone()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.max()))


def test_what_one_matrix_becomes_does_not_depend_on_the_others() -> None:
    matrices = symmetric(40).double()
    together, alone = tridiagonal(matrices.clone()), tridiagonal(matrices[1:2].clone())
    torch.testing.assert_close(together[0][1:2], alone[0])
    torch.testing.assert_close(together[1][1:2], alone[1])


def test_on_a_cpu_nothing_is_recorded() -> None:
    matrices = symmetric(20)
    for _ in range(3):
        for found, expected in zip(
            reductions(matrices.clone()), tridiagonal(matrices.clone()), strict=True
        ):
            assert torch.equal(found, expected)
