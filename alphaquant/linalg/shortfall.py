"""What a linear's outputs lack behind quantized ones, and the weight that makes up for it.

Quantized blocks hand on inputs X̃ in place of X, and the residual stream that an output joins has drifted by all that they
have left behind. With Δ what the stream lacks there, W + ΔX̃ᵀ (X̃X̃ᵀ)⁻¹ is the weight that supplies it as far as X̃ tells.
(Where Δ is WX - WX̃, which a linear's own inputs have lost, that is QEP, arXiv 2504.09629.)

How far it tells is measured (James and Stein, 1961). In the metric of (X̃X̃ᵀ)⁻¹, sums over two halves of the tokens agree in
what is there and not in what is chance, so their inner product says how much of the whole is worth following. Were there
no chance at all, they would agree as far as X̃X̃ᵀ itself does between the halves, and that counts as all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg import gram_in_c
from alphaquant.linalg.hessian import InverseFactor, TokenWeights
from alphaquant.linalg.products import add_product


class Shortfall:
    """Sums ΔX̃ᵀ over tokens, those of either half by themselves, with Δ what the outputs should be beyond what they are.

    Of inputs, Δ is X - X̃, and W times the sums is what the outputs lack.
    """

    def __init__(
        self, rows: int, cols: int, device: torch.device, *, of_inputs: bool = False
    ) -> None:
        self.of_inputs = of_inputs
        self.halves = torch.zeros(
            2, cols if of_inputs else rows, cols, dtype=torch.float32, device=device
        )

    def update(
        self, half: int, gap: Tensor, now: Tensor, weights: TokenWeights | None = None
    ) -> None:
        """Add a batch's Δ `[..., out or in]` and inputs `[..., in]` to half 0 or 1; each token counts once where it has no weight."""
        gap, now = gap.reshape(-1, gap.shape[-1]).float(), now.reshape(-1, now.shape[-1])
        if weights is not None:
            gap = gap * weights.values.float()[:, None]
        if now.dtype == torch.bfloat16 and not now.is_cuda and gram_in_c.runs():
            # inputs are bf16 as they are; what gaps lose by it is 2^-9 of themselves, and differs from token to token
            gram_in_c.add_product(self.halves[half], gap.to(torch.bfloat16), now)
        else:
            add_product(self.halves[half], gap, now.float())


def agreement(halves: Tensor, factor: InverseFactor) -> tuple[Tensor, Tensor]:
    """<A, B> / |A + B|² `[...]` of two `halves` `[2, ..., out, in]` in the metric of the inverse, and A + B in its coordinates."""
    first, second = factor.whiten(halves[0]), factor.whiten(halves[1])
    product = (first * second).sum((-2, -1))
    whole = first.add_(second)
    return product / whole.square().sum((-2, -1)), whole


def move(halves: Tensor, most: Tensor, factor: InverseFactor) -> tuple[Tensor, Tensor]:
    """By what weights `[..., out, in]` supply all that they lack, and the share `[...]` of it that is not chance, in 0 to 1.

    `halves` `[2, ..., out, in]` are 2/n ΔX̃ᵀ of either half of n tokens; `most` `[...]` is the `agreement` of their X̃X̃ᵀ.
    Where a half has no token, nothing is known to be more than chance.
    """
    agreed, whole = agreement(halves, factor)
    return factor.solve_white(whole), (agreed / most).nan_to_num(0, 0, 0).clamp(0, 1)


def trusted_share(tokens: Tensor, cols: int, prior: float) -> Tensor:
    """How much of a correction from `tokens` `[...]` tokens is signal: the prior weighs `prior * cols` tokens."""
    count = tokens.float()
    return torch.where(count > 0, count / (count + prior * cols), torch.zeros_like(count))
