"""What a linear lacks behind quantized ones, and the weight that makes up for it.

Quantized blocks hand on inputs X̃ in place of X. The weight whose outputs on X̃ come nearest to WX is
W + W (X - X̃)X̃ᵀ (X̃X̃ᵀ)⁻¹, and rounding that one corrects what was lost before (QEP, arXiv 2504.09629).

What joins the residual stream can do more: the stream itself has drifted, by all that blocks before have left behind, and
what the output lacks, Δ, is all that is missing there. The weight that supplies it as far as X̃ tells is W + ΔX̃ᵀ (X̃X̃ᵀ)⁻¹.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg.hessian import HessianAccumulator, InverseFactor, TokenWeights


class DriftAccumulator(HessianAccumulator):
    """Sums (X - X̃)ᵀX̃ over pairs of inputs; `hessian` is 2/n times that, as the Hessian beside it."""

    def update_pair(
        self, original: Tensor, now: Tensor, weights: TokenWeights | None = None
    ) -> None:
        """Add the inputs `[..., in]` that the original and the quantized model make of the same tokens.

        Each counts once where it has no weight.
        """
        first, second = (x.reshape(-1, x.shape[-1]).float() for x in (original, now))
        moved = first - second
        self._count(second.shape[0], weights)
        if weights is not None:
            moved = moved * weights.values.float()[:, None]
        self.total.addmm_(moved.T, second)


class Shortfall:
    """Sums ΔX̃ᵀ `[out, in]` over tokens, with Δ what the outputs should be beyond what they are."""

    def __init__(self, rows: int, cols: int, device: torch.device) -> None:
        self.total = torch.zeros(rows, cols, dtype=torch.float32, device=device)

    def update(self, gap: Tensor, now: Tensor, weights: TokenWeights | None = None) -> None:
        """Add a batch's Δ `[..., out]` and inputs `[..., in]`; each token counts once where it has no weight."""
        gap, now = (x.reshape(-1, x.shape[-1]).float() for x in (gap, now))
        if weights is not None:
            gap = gap * weights.values.float()[:, None]
        self.total.addmm_(gap.T, now)


def corrected(weight: Tensor, lacking: Tensor, factor: InverseFactor, share: Tensor) -> Tensor:
    """`[..., out, in]` moved by `share` `[...]` of what makes up for `lacking` `[..., out, in]`.

    That is 2/n ΔX̃ᵀ, with Δ what outputs lack: W (X - X̃) where inputs have drifted.
    """
    # two triangular solves: the inverse itself would be one more matrix to hold
    half = torch.linalg.solve_triangular(factor.root.mT, lacking, upper=False, left=False)
    move: Tensor = torch.linalg.solve_triangular(factor.root, half, upper=True, left=False)
    return weight + share[..., None, None] * move


def trusted_share(tokens: Tensor, cols: int, prior: float) -> Tensor:
    """How much of a correction from `tokens` `[...]` tokens is signal: the prior weighs `prior * cols` tokens."""
    count = tokens.float()
    return torch.where(count > 0, count / (count + prior * cols), torch.zeros_like(count))
