"""Router alignment: the router that gives on the quantized model's inputs the logits that the original gives on its own.

Errors of earlier layers move a router's input from X to X̃. Least squares of ‖R X - R* X̃‖² has a closed form,
R* = R̃ + (R X X̃ᵀ - R̃ H)(H + λI)⁻¹ with H = X̃ X̃ᵀ and R̃ the router as the quantized model has it: with R̃ = R the
correction that QEP (Arai and Ichikawa, NeurIPS 2025) makes before rounding a weight, here for a weight that is not
rounded. R̃ differs from R where inputs are scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # λ as a share of the mean diagonal of H
_PRIOR = 0.5  # tokens per input feature at which half of the correction is made


class RouterAlignment:
    """Sums over pairs of inputs of one router, of the original and of the quantized model."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self._gram = torch.zeros(cols, cols, dtype=torch.float32, device=device)  # X̃X̃ᵀ
        self._cross = torch.zeros_like(self._gram)  # XX̃ᵀ
        self.tokens = 0

    def update(self, original: Tensor, ours: Tensor) -> None:
        """Add the inputs `[..., in]` of the same tokens in both models."""
        cols = self._gram.shape[0]
        x, moved = original.reshape(-1, cols).float(), ours.reshape(-1, cols).float()
        self.tokens += moved.shape[0]
        self._gram.addmm_(moved.T, moved)
        self._cross.addmm_(x.T, moved)

    def aligned(self, weight: Tensor, original: Tensor) -> Tensor:
        """The router `[experts, in]` in fp32, corrected by a share T / (T + in / 2) of the closed form.

        `original` is the router of the original model.
        """
        cols = self._gram.shape[0]
        share = self.tokens / (self.tokens + _PRIOR * cols)
        damping = _DAMPING * self._gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        damped = self._gram + damping * torch.eye(cols, device=self._gram.device)
        weight = weight.float()
        missing = original.float() @ self._cross - weight @ self._gram
        correction: Tensor = torch.linalg.solve(damped, missing.T).T
        return weight + share * correction
