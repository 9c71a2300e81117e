"""Linears that read the same inputs share the work, and come out as they would alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms import solve_stack as module
from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import sharing_stacks
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.linalg.hessian import HessianAccumulator, inverse_factor
from alphaquant.models.linear import LinearSpec
from tests.specs import moe_specs

CPU = torch.device("cpu")
SPECS = [spec for spec in moe_specs(1, experts=3) if spec.block is not None]


class _Weights:
    """Random weights by name."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._weights = {s.name: torch.randn(s.rows, s.cols, generator=generator) for s in SPECS}

    def weight(self, linear: str) -> Tensor:
        return self._weights[linear]


@pytest.fixture
def inputs() -> dict[str, HessianAccumulator]:
    generator = torch.Generator().manual_seed(1)
    found = {spec.input_key: HessianAccumulator(spec.cols, CPU) for spec in SPECS}
    for accumulator in found.values():
        cols = accumulator.total.shape[0]
        mix = torch.randn(cols, cols, generator=generator) / cols**0.5
        accumulator.update(torch.randn(300, cols, generator=generator) @ mix)
    return found


def _solved(
    specs: list[LinearSpec],
    inputs: Mapping[str, HessianAccumulator],
    schemes: Mapping[str, Scheme],
    **changes: Any,
) -> dict[str, tuple[Solved, int]]:
    config = QuantizationConfig(**changes)
    return {
        spec.name: (solved, position)
        for sharing in sharing_stacks(specs, inputs, 1.0, schemes)
        for solved in solve_stacks(_Weights(), sharing, schemes, CPU, config)
        for position, spec in enumerate(solved.stack.specs)
    }


def _factors(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the Hessians that are factored from now on."""
    seen: list[torch.Size] = []

    def count(hessian: Tensor, damping: float, *, by_energy: bool) -> Any:
        seen.append(hessian.shape)
        return inverse_factor(hessian, damping, by_energy=by_energy)

    monkeypatch.setattr(module, "inverse_factor", count)
    return seen


@pytest.mark.parametrize("text", ["int3-g32", "int4-g16-asym", "nvfp4", "mxfp4"])
def test_sharing_changes_nothing(
    inputs: dict[str, HessianAccumulator], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = {spec.name: Scheme.parse(text) for spec in SPECS}
    factored = _factors(monkeypatch)
    together = _solved(SPECS, inputs, schemes, tune="block")
    # q/k/v, o, router, gate/up and down of all experts
    assert len(factored) == 5
    monkeypatch.setattr(module, "_TOGETHER", 1)
    apart = _solved(SPECS, inputs, schemes, tune="block")
    for spec in SPECS:
        (one, at), (other, there) = together[spec.name], apart[spec.name]
        assert one.quantized.shape[-2:] == (spec.rows, spec.cols)
        assert torch.equal(one.weight[at], _Weights().weight(spec.name))
        same = one.quantized[at].dequantize() == other.quantized[there].dequantize()
        assert float(same.float().mean()) > 0.999  # products of other shapes sum in another order
        assert one.compensated is not None
        assert other.compensated is not None
        torch.testing.assert_close(one.compensated[at], other.compensated[there], atol=0.5, rtol=0)
    untuned = _solved(SPECS, inputs, schemes)
    assert all(solved.compensated is None for solved, _ in untuned.values())


def test_schemes_may_differ_and_what_is_kept_is_left_out(
    inputs: dict[str, HessianAccumulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = [spec for spec in SPECS if spec.role in ("q", "k", "v", "o")]
    texts = {"q": "int4-g32", "k": "bf16", "v": "int3-g32", "o": "bf16"}
    schemes = {spec.name: Scheme.parse(texts[spec.role]) for spec in attention}
    factored = _factors(monkeypatch)
    found = _solved(attention, inputs, schemes)
    assert {name.rpartition(".")[2] for name in found} == {"q_proj", "v_proj"}
    assert all(solved.scheme == schemes[name] for name, (solved, _) in found.items())
    assert len(factored) == 1


@pytest.mark.parametrize("method", ["rtn", "awq", "adaround"])
def test_other_methods_solve_a_stack_at_a_time(
    inputs: dict[str, HessianAccumulator], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = {spec.name: Scheme.parse("int4-g32") for spec in SPECS}
    factored = _factors(monkeypatch)
    found = _solved(SPECS, inputs, schemes, method=method, learned_rounding_steps=2)
    assert len(factored) == 5
    assert all(solved.quantized.shape == solved.weight.shape for solved, _ in found.values())
