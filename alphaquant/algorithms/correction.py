"""By what a linear's weights are moved so that it makes up for what was lost before it, as far as two halves of the windows agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.algorithms.stacks import Stack
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.hessian import HessianAccumulator, InverseFactor
from alphaquant.linalg.products import quick_products
from alphaquant.linalg.shortfall import agreement, move, trusted_share
from alphaquant.models.shortfalls import Observed


@dataclass
class Mover:
    """By what weights are moved that read the same inputs; the part of what they lack goes to `shares`."""

    seen: Observed
    config: QuantizationConfig
    shares: list[float]
    most: Tensor | None = None
    """How far the halves of the inputs agree `[n]`."""

    @timed("correction")
    def __call__(self, stack: Stack, weight: Tensor, factor: InverseFactor) -> Tensor:
        """Of a stack and its weights `[n, out, in]`. Where an expert's Hessian leans on its block's, nothing is lacking."""
        cols, keys = stack.specs[0].cols, [spec.input_key for spec in stack.specs]
        hessians = [self.seen.hessians[key] for key in keys]
        short = [self.seen.shortfalls[key] for key in keys]
        if self.most is None:
            inputs = torch.empty(2, len(keys), cols, cols, device=weight.device)
            for both, hessian, key in zip(inputs.unbind(1), hessians, keys, strict=True):
                _fill(both, hessian, self.seen.first[key])
            self.most, _ = agreement(inputs, factor)
            del inputs, both
        lacking = [s.halves * h.scale for s, h in zip(short, hessians, strict=True)]
        halves = torch.stack(lacking, dim=1)
        if short[0].of_inputs:
            with quick_products():
                halves = weight @ halves
        found, share = move(halves, self.most, factor)
        tokens = torch.tensor(stack.tokens, device=share.device)
        share = share * trusted_share(tokens, cols, self.config.correction_prior)
        if stack.specs[0].expert is not None:
            tokens = torch.tensor([h.effective_tokens for h in hessians], device=share.device)
            share = share * trusted_share(tokens, cols, self.config.expert_shrinkage)
        self.shares.extend(share.tolist())
        return found * share[:, None, None]


def _fill(halves: Tensor, hessian: HessianAccumulator, first: Tensor) -> None:
    """Let `halves` `[2, in, in]` be 2/n X̃X̃ᵀ of either half of the windows."""
    halves[0] = first
    torch.sub(hessian.total, first, out=halves[1])
    halves *= hessian.scale
