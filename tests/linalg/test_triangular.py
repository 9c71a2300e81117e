from __future__ import annotations

import pytest
import torch

from alphaquant.linalg.triangular import upper_inverse


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
