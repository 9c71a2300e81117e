"""Stacks hold the Hessians of their linears, one stack after the other, whatever their number."""

from __future__ import annotations

import pytest
import torch

from alphaquant.algorithms.stacks import sharing_stacks, stacks
from alphaquant.linalg.hessian import HessianAccumulator, pooled, shrink
from tests.specs import moe_specs

EXPERTS = [spec for spec in moe_specs(1) if spec.expert is not None and spec.role == "up"]


@pytest.mark.parametrize("kinds", [["int4"] * 4, ["int4", "int8", "int4", "int8"]])
@pytest.mark.parametrize("at_once", [1, 3, 9])
def test_parts_have_the_hessians_that_the_whole_has(kinds: list[str], at_once: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = {
        spec.input_key: HessianAccumulator(spec.cols, torch.device("cpu")) for spec in EXPERTS
    }
    for number, spec in enumerate(EXPERTS):
        x = torch.randn(1 + 4 * number, spec.cols, generator=generator)
        inputs[spec.input_key].update(x)
    every = [inputs[spec.input_key] for spec in EXPERTS]
    prior = pooled(every)
    assert prior is not None
    effective = torch.tensor([one.effective_tokens for one in every])
    expected = shrink(torch.stack([one.hessian for one in every]), effective, 0.5, prior)
    schemes = {spec.name: kind for spec, kind in zip(EXPERTS, kinds, strict=True)}
    seen = []
    for stack in stacks(EXPERTS, inputs, 0.5, schemes, lambda _: at_once):
        assert len(stack.specs) <= at_once
        assert len({schemes[spec.name] for spec in stack.specs}) == 1
        for spec, hessian, tokens in zip(stack.specs, stack.hessian, stack.tokens, strict=True):
            assert torch.equal(hessian, expected[EXPERTS.index(spec)])
            assert tokens == inputs[spec.input_key].tokens
            seen.append(spec)
    assert sorted(seen, key=EXPERTS.index) == EXPERTS


def test_linears_that_read_the_same_inputs_hold_one_tensor() -> None:
    specs = [spec for spec in moe_specs(1) if spec.block is not None]
    inputs = {spec.input_key: HessianAccumulator(spec.cols, torch.device("cpu")) for spec in specs}
    schemes = {spec.name: "int4" for spec in specs} | {EXPERTS[1].name: "int8"}
    found = [
        [(stack.specs[0].role, len(stack.specs)) for stack in sharing]
        for sharing in sharing_stacks(specs, inputs, 1.0, schemes)
    ]
    # an expert whose up has a scheme of its own shares its Hessian with nobody
    assert found == [
        [("q", 1), ("k", 1), ("v", 1)],
        [("o", 1)],
        [("router", 1)],
        [("gate", 4)],
        [("up", 3)],
        [("up", 1)],
        [("down", 4)],
    ]
    for sharing in sharing_stacks(specs, inputs, 1.0):
        assert len({stack.hessian.data_ptr() for stack in sharing}) == 1
