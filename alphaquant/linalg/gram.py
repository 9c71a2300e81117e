"""XᵀX at half its price: a product with its own transpose is symmetric, and the BLAS call for that is not torch's."""

from __future__ import annotations

from torch import Tensor

_PANEL = 256  # columns that are multiplied at once: narrower ones are slower products, wider ones do more twice
_WORTH = 256  # rows of X from which the halves that are saved repay copying the other half


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add XᵀX of `x` `[rows, cols]` to `total` `[cols, cols]`, both fp32; what is below its diagonal waits for `mirror`."""
    rows, cols = x.shape
    if rows < _WORTH or cols <= _PANEL:
        total.addmm_(x.T, x)
        return
    for start in range(0, cols, _PANEL):
        end = min(start + _PANEL, cols)
        total[start:end, start:].addmm_(x[:, start:end].T, x[:, start:])


def mirror(total: Tensor) -> None:
    """Copy what is above the diagonal of `[cols, cols]` below it."""
    cols = total.shape[-1]
    for start in range(0, cols, _PANEL):
        end = min(start + _PANEL, cols)
        inside = total[start:end, start:end]
        inside.copy_(inside.triu() + inside.triu(1).T)
        total[end:, start:end] = total[start:end, end:].T
