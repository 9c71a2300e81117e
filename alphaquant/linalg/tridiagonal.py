"""Symmetric matrices to tridiagonal ones of the same eigenvalues, many at once: Householder's way, in panels.

A GPU's own routine takes one matrix after another, and leaves the device idle in between. Here a column's reflection is
one call for the whole batch, and the matrix is read once a column and written once a panel, as LAPACK's latrd does
(Dongarra, Sorensen and Hammarling, 1989).
"""

from __future__ import annotations

import torch
from torch import Tensor

_PANEL = 32
"""Columns whose reflections wait before they reach the rest of the matrix as one product."""


def tridiagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal `[batch, n]` and what is beside it `[batch, n - 1]`, of symmetric `[batch, n, n]`, which are overwritten.

    Entries should be around one: their squares are summed.
    """
    batch, size = matrices.shape[:2]
    diagonal = matrices.new_empty(batch, size)
    beside = matrices.new_empty(batch, max(size - 1, 0))
    for start in range(0, size - 1, _PANEL):
        stop = min(start + _PANEL, size - 1)
        _reduce_panel(matrices, start, stop, diagonal, beside)
    if size:
        diagonal[:, -1] = matrices[:, -1, -1]
    return diagonal, beside


def _reduce_panel(
    matrices: Tensor, start: int, stop: int, diagonal: Tensor, beside: Tensor
) -> None:
    """Reduce the columns from `start` to `stop`, and take their reflections from all that are left.

    A reflection I - v vᵀ with |v|² = 2 makes A - v wᵀ - w vᵀ of A, where w = p - (pᵀv / 2) v and p = A v. Those of the
    panel lie beside each other in `one` (v, then w) and the other way round in `other`.
    """
    batch, size = matrices.shape[:2]
    width = stop - start
    one = matrices.new_zeros(batch, size - start, 2 * width)
    other = torch.zeros_like(one)
    for column in range(start, stop):
        at = column - start
        now = torch.baddbmm(
            matrices[:, column, column:, None], one[:, at:], other[:, at, :, None], alpha=-1
        )[..., 0]
        diagonal[:, column] = now[:, 0]
        v = now[:, 1:].clone()
        length = torch.linalg.vector_norm(v, dim=-1)
        moved = torch.copysign(length, v[:, 0])
        beside[:, column] = -moved
        v[:, 0] += moved
        # where nothing is left to reflect, v is zero, and stays so
        v *= torch.rsqrt(length * v[:, 0].abs()).nan_to_num_(posinf=0.0)[:, None]
        later = slice(at + 1, None)
        p = matrices[:, column + 1 :, column + 1 :] @ v[..., None]
        p = torch.baddbmm(p, one[:, later], other[:, later].mT @ v[..., None], alpha=-1)[..., 0]
        w = torch.addcmul(p, v, (p * v).sum(-1, keepdim=True), value=-0.5)
        one[:, later, at], one[:, later, width + at] = v, w
        other[:, later, at], other[:, later, width + at] = w, v
    matrices[:, stop:, stop:].baddbmm_(one[:, width:], other[:, width:].mT, alpha=-1)
