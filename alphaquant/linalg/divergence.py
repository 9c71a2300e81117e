"""KL divergence of distributions given by their log-probabilities, in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Sum of p log(p/q) over the last dimension: `[..., tokens]` twice to `[...]`; gradients reach both.

    What p rules out (a logit of -inf) adds nothing, whatever q says; what q alone rules out costs infinity.
    """
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)
