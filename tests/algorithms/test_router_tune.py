from __future__ import annotations

import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from alphaquant.algorithms.router_tune import routing_divergence


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))


def test_softmax_routing_is_one_distribution_over_experts() -> None:
    theirs, ours = logits(0), logits(1)
    expected = kl_divergence(Categorical(logits=theirs), Categorical(logits=ours)).mean()
    torch.testing.assert_close(routing_divergence(theirs, ours, "softmax"), expected)
    shifted = routing_divergence(theirs, theirs + 1, "softmax")
    torch.testing.assert_close(shifted, torch.tensor(0.0), rtol=0, atol=1e-6)


def test_sigmoid_routing_asks_every_expert_by_itself() -> None:
    theirs, ours = logits(0), logits(1)
    expected = kl_divergence(Bernoulli(logits=theirs), Bernoulli(logits=ours)).mean()
    torch.testing.assert_close(routing_divergence(theirs, ours, "sigmoid"), expected)
    assert not routing_divergence(theirs, theirs, "sigmoid").any()
    assert routing_divergence(theirs, theirs + 1, "sigmoid") > 0.01  # a shift moves every score


def test_extreme_logits_stay_finite() -> None:
    theirs, ours = 100 * logits(0), (100 * logits(1)).requires_grad_(True)
    loss = routing_divergence(theirs, ours, "sigmoid")
    (gradient,) = torch.autograd.grad(loss, ours)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
