"""Stacks hold the Hessians of their linears, and no second copy of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms import stacks as module
from alphaquant.algorithms.stacks import sharing_stacks, stacks
from alphaquant.linalg.hessian import HessianAccumulator
from tests.specs import moe_specs

EXPERTS = [spec for spec in moe_specs(1) if spec.expert is not None and spec.role == "up"]


@pytest.mark.parametrize(
    "parts", [["int4", "int4", "int4", "int4"], ["int4", "int8", "int4", "int8"]]
)
def test_only_a_part_of_the_experts_is_copied(
    monkeypatch: pytest.MonkeyPatch, parts: list[str]
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "shrink", lambda hessian, *_: seen.append(hessian) or hessian)
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in EXPERTS:
        inputs[spec.input_key] = HessianAccumulator(spec.cols, torch.device("cpu"))
        inputs[spec.input_key].update(torch.randn(9, spec.cols, generator=generator))
    schemes = {spec.name: part for spec, part in zip(EXPERTS, parts, strict=True)}
    found = list(stacks(EXPERTS, inputs, 1.0, schemes))
    [family] = seen
    whole = len(found) == 1
    for stack in found:
        assert (stack.hessian.data_ptr() == family.data_ptr()) == whole
        for spec, hessian in zip(stack.specs, stack.hessian, strict=True):
            assert torch.equal(hessian, inputs[spec.input_key].hessian)


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
