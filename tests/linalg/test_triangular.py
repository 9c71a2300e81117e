from __future__ import annotations

import pytest
import torch

from alphaquant.linalg.triangular import inverse_root, upper_inverse, upper_root


@pytest.mark.parametrize("size", [1, 7, 128, 129, 300, 700])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_inverts_what_is_above_the_diagonal(size: int, batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 2 * size, size, dtype=torch.float64)
    root = torch.linalg.cholesky(x.mT @ x + torch.eye(size), upper=True)
    below = torch.full_like(root, torch.nan).tril(-1)
    found = upper_inverse(root + below.nan_to_num(7.0))
    assert torch.equal(found, found.triu())
    torch.testing.assert_close(found @ root, torch.eye(size).double().expand_as(root))


def test_is_as_exact_in_fp32_as_solving() -> None:
    x = torch.randn(1200, 600) * torch.logspace(0, -3, 600)
    root = torch.linalg.cholesky(x.T @ x / 1200 + 1e-6 * torch.eye(600), upper=True)
    exact = torch.linalg.inv(root.double())
    solved = torch.linalg.solve_triangular(root, torch.eye(600), upper=True)
    ours, theirs = ((one - exact).norm() for one in (upper_inverse(root), solved))
    assert ours < 3 * theirs


@pytest.mark.parametrize("size", [1, 7, 128, 129, 300, 700])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_roots_and_their_inverses_are_upper_and_exact(size: int, batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 2 * size, size, dtype=torch.float64)
    matrix = x.mT @ x + torch.eye(size)
    before = matrix.clone()
    root, failed = upper_root(matrix)
    inverse, none = inverse_root(matrix)
    assert failed.shape == none.shape == batch
    assert not failed.any()
    assert not none.any()
    assert torch.equal(matrix, before)
    assert torch.equal(inverse_root(before, used_up=True)[0], inverse)
    for found in (root, inverse):
        assert torch.equal(found, found.triu())
    torch.testing.assert_close(root @ root.mT, matrix)
    torch.testing.assert_close(inverse @ root, torch.eye(size).double().expand_as(root))


def test_roots_are_as_exact_in_fp32_as_those_of_lapack() -> None:
    x = torch.randn(1200, 600) * torch.logspace(0, -3, 600)
    matrix = x.T @ x / 1200 + 1e-6 * torch.eye(600)
    exact = torch.linalg.cholesky(matrix.double().flip(0, 1)).flip(0, 1)
    theirs = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    root, _ = upper_root(matrix)
    assert (root - exact).norm() < 3 * (theirs - exact).norm()
    inverse, _ = inverse_root(matrix)
    wanted = torch.linalg.inv(exact)
    assert (inverse - wanted).norm() < 3 * (upper_inverse(theirs) - wanted).norm()


@pytest.mark.parametrize("where", [5, 290])
def test_it_is_said_which_matrices_have_no_root(where: int) -> None:
    x = torch.randn(3, 900, 300)
    matrix = x.mT @ x
    matrix[1, where, where] = -1.0
    for factored in (upper_root, inverse_root):
        found, failed = factored(matrix)
        assert failed.tolist() == [False, True, False]
        alone, _ = factored(matrix[2])
        torch.testing.assert_close(found[2], alone)
