"""Drift: how far a linear's inputs have left the original model's, and the weight that makes up for it.

Quantized blocks hand on inputs X̃ in place of X. The weight whose outputs on X̃ come nearest to WX is
W + W (X - X̃)X̃ᵀ (X̃X̃ᵀ)⁻¹, and rounding that one corrects what was lost before (QEP, arXiv 2504.09629).
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


def corrected(weight: Tensor, drift: Tensor, factor: InverseFactor, share: Tensor) -> Tensor:
    """`[..., out, in]` moved by `share` `[...]` of what makes up for `drift` `[..., in, in]`."""
    # two triangular solves: the inverse itself would be one more matrix to hold
    half = torch.linalg.solve_triangular(factor.root.mT, weight @ drift, upper=False, left=False)
    move: Tensor = torch.linalg.solve_triangular(factor.root, half, upper=True, left=False)
    return weight + share[..., None, None] * move


def trusted_share(tokens: Tensor, cols: int, prior: float) -> Tensor:
    """How much of a correction from `tokens` `[...]` tokens is signal: the prior weighs `prior * cols` tokens."""
    count = tokens.float()
    return torch.where(count > 0, count / (count + prior * cols), torch.zeros_like(count))
