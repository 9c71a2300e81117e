"""Narrow linears give the products and gradients of wide ones, and hold what they say."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import nn

from alphaquant.models.widened import Widened
from tests.allocations import allocations

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
    _, narrow = chains(bias=False)
    x = torch.randn(1, 4, SIDE).requires_grad_(True)
    sizes = allocations(lambda: narrow(x))
    wide = 4 * SIDE**2
    assert max(accumulate(sizes)) >= wide  # each is made
    assert sum(sizes) < wide  # and none of twelve stays
    assert torch.autograd.grad(narrow(x).sum(), x)[0].isfinite().all()
