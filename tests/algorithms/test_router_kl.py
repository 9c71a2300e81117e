from __future__ import annotations

import pytest
import torch
from torch import nn

from alphaquant.algorithms.router_kl import (
    cross_entropy,
    kl_divergence,
    top_kl,
    top_prediction,
)

VOCABULARY = 300


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    head = nn.Linear(16, VOCABULARY, bias=False)
    nn.init.normal_(head.weight, std=1.5)
    return head.requires_grad_(False)


def hidden() -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states of an original and of something near it, `[windows, length, hidden]`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 10, 16, generator=generator)
    return x, x + 0.1 * torch.randn(3, 10, 16, generator=generator)


def full(head: nn.Linear, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    log_p, log_q = (torch.log_softmax(head(x), -1) for x in (a, b))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_divergence_is_that_of_the_whole_distributions(head: nn.Linear) -> None:
    original, ours = hidden()
    torch.testing.assert_close(kl_divergence(head, original, ours), full(head, original, ours))
    assert not kl_divergence(head, original, original).any()


def test_all_tokens_but_one_and_the_rest_are_the_full_divergence(head: nn.Linear) -> None:
    original, ours = hidden()
    everything = top_prediction(head, original, VOCABULARY)
    assert everything.index.shape[-1] == VOCABULARY - 1
    expected = full(head, original, ours).mean()
    torch.testing.assert_close(top_kl(head, everything, ours), expected, rtol=1e-4, atol=1e-6)


def test_fewer_tokens_bound_the_divergence_from_below_and_tightly(head: nn.Linear) -> None:
    original, ours = hidden()
    expected = float(full(head, original, ours).mean())
    found = [
        float(top_kl(head, top_prediction(head, original, count), ours))
        for count in (1, 8, 64, 200)
    ]
    assert found == sorted(found)
    assert found[-1] <= expected * (1 + 1e-5)
    assert found[2] > 0.9 * expected


def test_the_gradient_is_that_of_the_full_divergence(head: nn.Linear) -> None:
    original, ours = hidden()
    ours.requires_grad_(True)
    (expected,) = torch.autograd.grad(full(head, original, ours).mean(), ours)
    loss = top_kl(head, top_prediction(head, original, 200), ours)
    (found,) = torch.autograd.grad(loss, ours)
    assert float(nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0)) > 0.99


def test_a_certain_prediction_stays_finite(head: nn.Linear) -> None:
    original, ours = (200 * x for x in hidden())
    ours.requires_grad_(True)
    loss = top_kl(head, top_prediction(head, original, 8), ours)
    (gradient,) = torch.autograd.grad(loss, ours)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_cross_entropy_is_that_of_the_next_tokens(head: nn.Linear) -> None:
    _, ours = hidden()
    tokens = torch.randint(VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(2))
    expected = nn.functional.cross_entropy(
        head(ours)[:, :-1].reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1)
    )
    torch.testing.assert_close(cross_entropy(head, tokens, ours), expected)
