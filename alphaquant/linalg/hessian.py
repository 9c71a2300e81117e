"""Hessian of a linear's squared output error, 2/n XᵀX, and the factor of its inverse that GPTQ walks.

Leading batch dimensions (the experts of a block) are supported throughout.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_RAISE = 3.0  # factor between two tries of the damping


class HessianAccumulator:
    """Sums XᵀX in fp32 over the batches of one input, which several linears may share."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.total = torch.zeros(cols, cols, dtype=torch.float32, device=device)  # [in, in]
        self.tokens = 0

    def update(self, x: Tensor) -> None:
        """Add the inputs `[..., in]` of one batch."""
        flat = x.reshape(-1, x.shape[-1])
        self.tokens += flat.shape[0]
        if flat.dtype == torch.bfloat16 and flat.is_cuda:
            # products of bf16 are exact in fp32, so the tensor cores lose nothing
            self.total += torch.mm(flat.T, flat, out_dtype=torch.float32)
        else:
            flat = flat.float()
            self.total.addmm_(flat.T, flat)

    @property
    def hessian(self) -> Tensor:
        """2/n XᵀX `[in, in]`; zero when no token arrived."""
        return self.total * (2.0 / max(self.tokens, 1))


def white(cols: int, device: torch.device) -> HessianAccumulator:
    """The accumulator of uncorrelated unit inputs that no token stands behind."""
    accumulator = HessianAccumulator(cols, device)
    accumulator.total = torch.eye(cols, dtype=torch.float32, device=device)
    return accumulator


def shrink(hessians: Tensor, tokens: Tensor, strength: float) -> Tensor:
    """Pull each `[experts, in, in]` towards the token-weighted mean of all.

    The prior weighs as much as `strength * in` tokens, so an expert that few tokens reach leans on its
    block, and one that none reaches equals it.
    """
    if not bool(tokens.any()):
        return hessians
    count = tokens.to(hessians.dtype).view(-1, 1, 1)
    pooled = (hessians * count).sum(0, keepdim=True) / count.sum()
    prior = strength * hessians.shape[-1]
    weight = torch.where(count > 0, count / (count + prior), torch.zeros_like(count))
    return weight * hessians + (1 - weight) * pooled


@dataclass(frozen=True)
class InverseFactor:
    """Cholesky factor of a damped Hessian H + λI = RRᵀ with R upper, so that (H + λI)⁻¹ = UᵀU, U = R⁻¹."""

    root: Tensor  # [..., in, in] R
    damped: Tensor  # [..., in, in] H + λI
    damping: Tensor  # [...] share of the mean diagonal that was added
    energy: Tensor  # [..., in] diagonal of H itself: zero where no input arrives

    @functools.cached_property
    def upper(self) -> Tensor:
        """U `[..., in, in]`, whose rows tell how later columns make up for an error."""
        identity = torch.eye(self.root.shape[-1], dtype=self.root.dtype, device=self.root.device)
        inverse: Tensor = torch.linalg.solve_triangular(
            self.root, identity.expand_as(self.root), upper=True
        )
        return inverse

    @property
    def conditional_variance(self) -> Tensor:
        """1 / U_ii² `[..., in]`: squared error left by rounding a column after later ones have compensated."""
        return self.root.diagonal(dim1=-2, dim2=-1).square()

    def permuted(self, order: Tensor) -> InverseFactor:
        """The factor of the same matrix with its columns in `order [..., in]`."""
        matrix = self.damped.gather(-2, order[..., :, None].expand_as(self.damped))
        matrix = matrix.gather(-1, order[..., None, :].expand_as(matrix))
        lower = torch.linalg.cholesky(matrix.flip(-2, -1))
        energy = self.energy.gather(-1, order)
        return InverseFactor(lower.flip(-2, -1), matrix, self.damping, energy)


def damp(hessian: Tensor, damping: Tensor | float) -> Tensor:
    """H + damping * mean(diag H) I; the identity is added to a Hessian that no input reached.

    Dead columns (no input reaches them) are uncoupled from all others: they are rounded and disturb nobody.
    """
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    share = torch.as_tensor(damping, dtype=hessian.dtype, device=hessian.device)
    added = torch.where(mean > 0, share[..., None] * mean, torch.ones_like(mean))
    return hessian + torch.diag_embed(added.expand(hessian.shape[:-1]))


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> InverseFactor:
    """Factor of the inverse of a damped Hessian `[..., in, in]`, from one Cholesky.

    Damping is raised threefold for the entries whose factor does not exist. Raises ValueError when the
    Hessian holds NaN or infinity.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError(
            "the Hessian holds NaN or infinite values: the calibration inputs overflowed"
        )
    share = torch.full(hessian.shape[:-2], damping, dtype=hessian.dtype, device=hessian.device)
    while True:
        damped = damp(hessian, share)
        lower, info = torch.linalg.cholesky_ex(damped.flip(-2, -1))
        if not bool(info.any()):
            energy = hessian.diagonal(dim1=-2, dim2=-1)
            return InverseFactor(lower.flip(-2, -1), damped, share, energy)
        share = torch.where(info > 0, (share * _RAISE).clamp(min=1e-4), share)


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """tr(D H Dᵀ) of `[..., out, in]` and `[..., in, in]`: mean squared output error times two."""
    return ((difference @ hessian) * difference).sum((-2, -1))
