"""XᵀX, and dᵀHd with it, at half their price: what is symmetric is computed once, and the BLAS calls for that are not torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg.products import quick_products

_WHOLE = 192  # columns whose products with each other are one call: of fewer, calls are slow, of more, half is computed twice
_WORTH = 256  # rows of X from which that repays several calls


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add XᵀX of `x` `[rows, cols]` to `total` `[cols, cols]`, both fp32; what is below its diagonal waits for `mirror`."""
    rows, cols = x.shape
    if rows < _WORTH or cols <= _WHOLE:
        total.addmm_(x.T, x)
        return
    half = -(-cols // 128) * 64  # a multiple of what vector units take
    add_gram(total[:half, :half], x[:, :half])
    add_gram(total[half:, half:], x[:, half:])
    total[:half, half:].addmm_(x[:, :half].T, x[:, half:])


def gram(rows: Tensor) -> Tensor:
    """XXᵀ `[..., rows, rows]` of X `[..., rows, cols]`."""
    small = rows.shape[-2] <= _WHOLE or rows.shape[-1] < _WORTH  # nothing to halve
    if small or rows.is_cuda or rows.dtype != torch.float32:
        return rows @ rows.mT
    total = rows.new_zeros(*rows.shape[:-1], rows.shape[-2])
    with quick_products():
        for one, x in zip(_matrices(total), _matrices(rows), strict=True):
            add_gram(one, x.T)
            mirror(one)
    return total


def _matrices(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def quadratic(rows: Tensor, total: Tensor) -> Tensor:
    """The sum of dᵀHd over all `rows` d `[..., out, cols]` of a symmetric H `[..., cols, cols]`, `[...]`."""
    cols = rows.shape[-1]
    if cols <= _WHOLE or rows.is_cuda:  # there, a few large products are faster
        return ((rows @ total) * rows).sum((-2, -1))
    half = -(-cols // 128) * 64
    first, second = rows[..., :half], rows[..., half:]
    with quick_products():
        mixed = (first @ total[..., :half, half:]).mul_(second).sum((-2, -1))
    alone = quadratic(first, total[..., :half, :half])
    return alone + quadratic(second, total[..., half:, half:]) + 2 * mixed


def mirror(total: Tensor) -> None:
    """Copy what is above the diagonal of `[cols, cols]` below it."""
    cols = total.shape[-1]
    for start in range(0, cols, _WHOLE):
        end = min(start + _WHOLE, cols)
        inside = total[start:end, start:end]
        inside.copy_(inside.triu() + inside.triu(1).T)
        total[end:, start:end] = total[start:end, end:].T
