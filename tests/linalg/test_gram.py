from __future__ import annotations

import pytest
import torch

from alphaquant.linalg.gram import add_gram, mirror


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("cols", [5, 256, 257, 700])
def test_adds_the_product_with_the_own_transpose_and_stays_symmetric(rows: int, cols: int) -> None:
    x = torch.randn(rows, cols)
    before = torch.randn(cols, cols)
    total = before + before.T
    expected = total.double() + x.double().T @ x.double()
    add_gram(total, x)
    mirror(total)
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(total, total.T)
