"""Triangular factors H = RRᵀ with R upper, and their inverses, by products of halves.

torch's own calls factor with AVX2 on AMD's CPUs, clear half of what they return, and solve against the identity, which takes three
times the arithmetic of an inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg.products import quick_products

_SOLVED = 128  # columns whose factor or inverse is one call


def upper_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """R `[..., n, n]` of positive definite matrices, and which of them are not and have none `[...]`."""
    if matrix.is_cuda:
        lower, info = torch.linalg.cholesky_ex(matrix.flip(-2, -1))
        return lower.flip(-2, -1), info > 0
    root = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    with quick_products():
        return root, _factor(_copy(matrix), root, None)


def inverse_root(matrix: Tensor, *, used_up: bool = False) -> tuple[Tensor, Tensor]:
    """R⁻¹ `[..., n, n]` of positive definite matrices, which may be `used_up`, and which of them are not and have none `[...]`."""
    if matrix.is_cuda:
        root, failed = upper_root(matrix)
        return upper_inverse(root), failed
    inverse = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    with quick_products():
        return inverse, _factor(matrix if used_up else _copy(matrix), None, inverse)


def upper_inverse(matrix: Tensor) -> Tensor:
    """The inverse of upper triangular matrices `[..., n, n]`; what is below their diagonals is not looked at."""
    inverse = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    with quick_products():
        _invert(matrix, inverse)
    return inverse


def _factor(matrix: Tensor, root: Tensor | None, inverse: Tensor | None) -> Tensor:
    """Fill in the upper parts of R and R⁻¹, where they are wanted, from that of the `matrix`, which is used up.

    With R = [P Q; 0 S], RRᵀ is [PPᵀ + QQᵀ, QSᵀ; ·, SSᵀ]: S comes first, then Q by its inverse, then P. Returns which failed.
    """
    size = matrix.shape[-1]
    if size <= _SOLVED:
        lower, info = torch.linalg.cholesky_ex(matrix.flip(-2, -1))
        found = lower.flip(-2, -1)
        if root is not None:
            root.copy_(found)
        if inverse is not None:
            _invert(found, inverse)
        return torch.gt(info, 0)
    half = -(-size // (2 * _SOLVED)) * _SOLVED
    first, second = slice(0, half), slice(half, size)
    after = _part(inverse, second, second)
    if after is None:
        after = matrix.new_zeros(*matrix.shape[:-2], size - half, size - half)
    failed = _factor(matrix[..., second, second], _part(root, second, second), after)
    beside = matrix[..., first, second] @ after.mT
    matrix[..., first, first] -= beside @ beside.mT
    before = _part(inverse, first, first)
    failed |= _factor(matrix[..., first, first], _part(root, first, first), before)
    if root is not None:
        root[..., first, second] = beside
    if inverse is not None and before is not None:
        inverse[..., first, second] = before @ (beside @ after).neg_()
    return failed


def _part(matrix: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    return None if matrix is None else matrix[..., rows, columns]


def _copy(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


def _invert(matrix: Tensor, inverse: Tensor) -> None:
    """Fill in the upper part of the `inverse`: of [A B; 0 C] it is [A⁻¹, -A⁻¹BC⁻¹; 0, C⁻¹]."""
    size = matrix.shape[-1]
    if size <= _SOLVED:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
        inverse.copy_(torch.linalg.solve_triangular(matrix, identity, upper=True))
        return
    half = -(-size // (2 * _SOLVED)) * _SOLVED
    first, second = inverse[..., :half, :half], inverse[..., half:, half:]
    _invert(matrix[..., :half, :half], first)
    _invert(matrix[..., half:, half:], second)
    inverse[..., :half, half:] = first @ (matrix[..., :half, half:] @ second).neg_()
