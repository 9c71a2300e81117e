"""The inverse of a triangular matrix, by products of halves: solving against the identity takes three times the arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg.products import quick_products

_SOLVED = 128  # columns whose inverse is one call


def upper_inverse(matrix: Tensor) -> Tensor:
    """The inverse of upper triangular matrices `[..., n, n]`; what is below their diagonals is not looked at."""
    inverse = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    with quick_products():
        _invert(matrix, inverse)
    return inverse


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
