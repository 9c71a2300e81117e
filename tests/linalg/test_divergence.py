"""KL divergence equals its definition, and minds what a distribution rules out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alphaquant.linalg.divergence import divergence


def test_it_is_the_kl_divergence() -> None:
    p, q = (torch.randn(5, 7, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    theirs = nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(log_p, log_q), theirs)


@pytest.mark.parametrize("other", [0.0, -math.inf])
def test_a_token_that_the_first_rules_out_adds_nothing_and_spoils_no_gradient(other: float) -> None:
    log_p = torch.tensor([0.5, 0.3, -math.inf]).log_softmax(-1)
    logits = torch.tensor([0.1, 0.2, other], requires_grad=True)
    found = divergence(log_p, logits.log_softmax(-1))
    found.backward()
    p, q = log_p.exp(), logits.detach().softmax(-1)
    assert found.item() == pytest.approx(float((p * (p / q).log())[:2].sum()), rel=1e-5)
    torch.testing.assert_close(logits.grad, q - p)


def test_a_token_that_the_second_alone_rules_out_costs_infinitely_much() -> None:
    log_q = torch.tensor([0.5, 0.3, -math.inf]).log_softmax(-1)
    assert float(divergence(torch.zeros(3).log_softmax(-1), log_q)) == math.inf
