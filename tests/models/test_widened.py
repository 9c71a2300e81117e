"""Narrow linears give the products and gradients of wide ones, and hold what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alphaquant.models.widened import Widened
from alphaquant.resident import give_back, resident, return_at_once

SIDE, COUNT = 1024, 12


def chains(bias: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """The same linears in fp32 and in bf16."""
    torch.manual_seed(0)
    wide = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=bias) for _ in range(COUNT)))
    narrow = nn.Sequential()
    for linear in wide:
        assert isinstance(linear, nn.Linear)
        linear.weight.data = linear.weight.data.bfloat16().float()
        twin = Widened.like(linear)
        state = linear.state_dict()
        twin.load_state_dict(state | {"weight": state["weight"].bfloat16()}, assign=True)
        narrow.append(twin)
    return wide.requires_grad_(False), narrow.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(SIDE,), (5, SIDE), (2, 3, SIDE)])
def test_gradients_are_those_of_the_wide_linears_to_the_bit(
    bias: bool, shape: tuple[int, ...]
) -> None:
    found = []
    for chain in chains(bias):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        out = chain(x)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), x)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_graph_holds_no_wide_weights() -> None:
    if resident() is None:
        pytest.skip("the system does not tell what a process has in memory")
    return_at_once()
    _, narrow = chains(bias=False)
    x = torch.randn(1, 4, SIDE).requires_grad_(True)
    torch.autograd.grad(narrow(x).sum(), x)  # libraries take theirs
    give_back()
    before = resident() or 0
    out = narrow(x)
    assert (resident() or 0) - before < 3 * 4 * SIDE**2  # of twelve
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
