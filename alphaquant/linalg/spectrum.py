"""Spectrum: the eigenvalues of WᵀW, from an fp32 Gram matrix wherever fp32 can resolve the tail."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.formats.kernels import fused
from alphaquant.linalg.gram import gram
from alphaquant.linalg.hill import tail_count

FP32_REACH = 1e-5
"""Eigenvalues of an fp32 Gram matrix err by some 1e-7 of the largest: smaller tails need fp64."""
FP64_REACH = 1e-10
"""The same limit for fp64; below it the Gram matrix, which squares, gives way to singular values."""
_MANY = 16
"""Matrices from which a GPU solves them together: its own routine takes one after another, but a large one faster."""


def spectrum(
    weight: Tensor,
    *,
    tail_fraction: float = 0.1,
    tail_size: int | None = None,
    exact: bool = False,
) -> Tensor:
    """Eigenvalues of WᵀW, ascending, float64 `[..., min(out, in)]`, of weights `[..., out, in]`.

    The Gram matrix of the shorter side and its eigenvalues are computed in fp32, then in fp64 for
    each matrix whose smallest tail eigenvalue is beyond fp32's reach, then from float64 singular
    values beyond fp64's; `exact` starts at the singular values. An eigenvalue that is zero up to
    rounding is 0. Weights must be finite.
    """
    flat = weight.detach().reshape(-1, *weight.shape[-2:])
    if flat.shape[-2] > flat.shape[-1]:
        flat = flat.mT
    unit, exponent = _normalized(flat)
    if exact:
        values = _singular_squares(unit)
    else:
        values = _gram_eigenvalues(unit, torch.float32)
        start = -1 - tail_count(values.shape[-1], tail_fraction, tail_size)
        for index in _beyond(values, start, FP32_REACH):
            values[index] = _gram_eigenvalues(unit[index], torch.float64)
        for index in _beyond(values, start, FP64_REACH):
            values[index] = _singular_squares(unit[index])
    values = torch.ldexp(values, 2 * exponent)
    return values.reshape(*weight.shape[:-2], -1)


def _normalized(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[batch, short, long]` brought to a peak in [0.5, 1), and the exponents `[batch, 1]`.

    Squares of large or small weights would leave fp32's range; a power of two loses no bit.
    """
    _, exponent = torch.frexp(flat.abs().amax(dim=(-2, -1)).float())
    exponent = exponent.clamp(-120, 120)
    return torch.ldexp(flat.float(), -exponent[:, None, None]), exponent[:, None]


def _gram_eigenvalues(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Eigenvalues `[..., short]` in float64 of the Gram matrix of the shorter side."""
    matrix = unit.to(dtype)
    values = _eigenvalues(gram(matrix)).double()
    noise = values[..., -1:] * values.shape[-1] * torch.finfo(torch.float64).eps
    return torch.where(values > noise, values, 0.0)


def _eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues `[..., n]`, ascending, of symmetric `[..., n, n]`, which may be overwritten."""
    if matrices.dim() == 3 and len(matrices) >= _MANY and fused(matrices):
        from alphaquant.linalg import sturm_kernel

        if sturm_kernel.runs(matrices.device):
            return sturm_kernel.eigenvalues(matrices)
    values: Tensor = torch.linalg.eigvalsh(matrices)
    return values


def _singular_squares(unit: Tensor) -> Tensor:
    """Squared singular values `[..., short]`, ascending."""
    singular = torch.linalg.svdvals(unit.double()).flip(-1)
    noise = singular[..., -1:] * singular.shape[-1] * torch.finfo(torch.float64).eps
    return torch.where(singular > noise, singular, 0.0).square()


def _beyond(values: Tensor, start: int, reach: float) -> list[int]:
    """Matrices of the batch whose tail starts below `reach` times the largest eigenvalue."""
    return torch.nonzero(values[:, start] < reach * values[:, -1]).flatten().tolist()
