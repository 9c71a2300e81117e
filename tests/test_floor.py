"""Formulas of what steps have to do, against counted products and against each other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alphaquant import floor
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.clock import Clock, listening
from alphaquant.config import AlphaConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import multiplies_bf16
from alphaquant.models.linear import LinearSpec
from alphaquant.models.rates import measured_rates
from alphaquant.plan import QuantPlan
from alphaquant.work import Rates, Work
from tests.observed import run_and_collect
from tests.tiny import VOCABULARY, make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(make_model(tmp_path_factory.mktemp("floor") / "olmoe", "olmoe"))


def test_forward_and_hessians_are_what_torch_counts(mixture: Checkpoint) -> None:
    tokens = torch.randint(0, VOCABULARY, (4, 32))
    model = BlockModel(mixture, CPU, torch.float32)
    hidden, specs, block = model.embed(tokens, 4), mixture.block_specs(0), model.block(0)
    with FlopCounterMode(display=False) as counted:
        accumulators, _ = run_and_collect(model, block, 0, specs, hidden)
    by_kernel = {str(k): n for k, n in counted.get_flop_counts()["Global"].items()}
    linears = sum(n for k, n in by_kernel.items() if k in ("aten.mm", "aten.addmm"))
    seen = floor.Tokens.of(mixture, tokens.numel(), half=False)
    assert linears == pytest.approx(floor.forward(specs, seen).flop)
    # products that are added in place, which torch does not count
    sums = sum(2 * a.total.numel() * a.tokens for a in accumulators.values())
    assert floor.hessians(specs, seen).flop == pytest.approx(sums)


def test_every_step_of_a_block_with_a_formula_is_one_that_is_timed(
    mixture: Checkpoint, tmp_path: Path
) -> None:
    config = QuantizationConfig(correction="stream", tune="block", tune_steps=2)
    specs = [spec for spec in mixture.specs if spec.block is not None]
    scheme = Scheme.parse("int4-g32")
    schemes = {s.name: Scheme.parse("bf16") if s.role == "router" else scheme for s in specs}
    with listening(Clock()) as clock:
        quantize_blocks(
            mixture,
            QuantPlan(specs, schemes),
            torch.randint(0, VOCABULARY, (8, 32)),
            config,
            device=CPU,
            batch_size=4,
            blocks=FreshBlocks(tmp_path),
        )
    untold = {"build", "correction"}
    assert set(clock.work) == set(clock.seconds) - untold
    assert all(work != Work() for work in clock.work.values())


def test_bf16_goes_to_tensor_cores_and_factors_do_not(mixture: Checkpoint) -> None:
    specs = mixture.block_specs(0)
    whole, half = (floor.Tokens(100, 0.5, half=half) for half in (False, True))
    assert floor.forward(specs, half).tensor_flop == floor.forward(specs, whole).flop
    assert floor.forward(specs, half).flop == floor.factor(specs, 1).tensor_flop == 0


def test_experts_get_their_share_of_the_tokens(mixture: Checkpoint) -> None:
    seen = floor.Tokens.of(mixture, 100, half=False)
    by_role = {spec.role: spec for spec in mixture.block_specs(0)}
    chosen = mixture.raw_config["num_experts_per_tok"]
    assert seen.reaching(by_role["q"]) == 100
    assert seen.reaching(by_role["down"]) == 100 * chosen / mixture.raw_config["num_experts"]


def test_one_input_is_multiplied_and_factored_once(mixture: Checkpoint) -> None:
    attention = {s.role: s for s in mixture.block_specs(0) if s.role in ("q", "k", "v")}
    one, three = [attention["q"]], list(attention.values())
    assert floor.factor(three, 3) == floor.factor(one, 3)
    tokens = floor.Tokens(10)
    assert floor.hessians(three, tokens) == floor.hessians(one, tokens)
    assert floor.forward(three, tokens).flop > floor.forward(one, tokens).flop


def test_spectra_count_the_whole_matrix_or_the_windows_of_farms() -> None:
    spec = LinearSpec("up", "up", 0, None, 512, 256, "in", "up")
    model: Any = SimpleNamespace(specs=[spec], entries={})
    whole = 2 * 256**2 * 512 + 4 / 3 * 256**3
    windows = 8 * (2 + 4 / 3) * 128**3
    for kind, flop in (("hill", whole), ("farms", windows)):
        found = floor.spectra(model, AlphaConfig.model_validate({"estimator": kind}))
        assert found["spectrum"].flop == pytest.approx(flop)


def test_the_floor_is_that_of_the_slowest_part() -> None:
    rates = Rates(10.0, 100.0, 1000.0, 50.0, 5.0, "toy")
    assert rates.floor(Work(flop=20, tensor_flop=100, moved=1000, read=25)) == 2
    assert rates.floor(Work(flop=20, written=20)) == 4
    assert rates.floor(Work()) == 0


def test_this_machine_is_measured_once_and_left_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measured_rates(CPU)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert measured_rates(CPU) is found
    assert min(found.flop, found.tensor_flop) > 1e8
    assert (found.tensor_flop == found.flop) == (not multiplies_bf16())
    assert found.moved > 1e8
    assert found.read > 1e7
    assert found.written > 1e6
