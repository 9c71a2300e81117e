"""What the README promises of the demo model, measured: formats, methods, budget and routers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_random import random_plan
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import block_weights
from alphaquant.algorithms.router import RouterResult, repair_routers, trainable_routers
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import AllocationConfig, AlphaConfig, QuantizationConfig, RouterConfig
from alphaquant.demo import demo_model_path
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_model
from alphaquant.plan import QuantPlan
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import calibration_tokens, evaluation_windows
from tests.algorithms.test_quantize_model import CPU, FolderCache

pytestmark = pytest.mark.slow
Measure = Callable[..., float]


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return Checkpoint(demo_model_path())


@pytest.fixture(scope="module")
def tokens(demo: Checkpoint) -> torch.Tensor:
    return calibration_tokens(demo.tokenizer, load_documents("builtin", "calibration"), 32, 256, 0)


@pytest.fixture(scope="module")
def heldout(demo: Checkpoint) -> torch.Tensor:
    return evaluation_windows(
        demo.tokenizer, load_documents("builtin", "evaluation"), 256, limit=32
    )


class Lab:
    """Quantizes the demo model by a plan and measures its divergence from the original."""

    def __init__(self, demo: Checkpoint, tokens: torch.Tensor, heldout: torch.Tensor, root: Path):
        self.demo, self.tokens, self.heldout, self.root = demo, tokens, heldout, root
        self.original = log_probabilities(load_model(demo.path, CPU), heldout)
        self.runs = 0

    def blocks(self, plan: QuantPlan, method: str = "gptq") -> list[Path]:
        self.runs += 1
        config = QuantizationConfig(method=method)  # type: ignore[arg-type]
        cache = FolderCache(self.root / str(self.runs))
        return quantize_blocks(
            self.demo, plan, self.tokens, config, device=CPU, batch_size=16, blocks=cache
        )

    def kl(self, plan: QuantPlan, method: str = "gptq") -> float:
        return self.kl_of(self.blocks(plan, method))

    def kl_of(self, blocks: list[Path], routers: dict[str, torch.Tensor] | None = None) -> float:
        model = load_model(self.demo.path, CPU)
        live = LiveCheckpoint(model)
        with torch.no_grad():
            for index, folder in enumerate(blocks):
                weights = dict(block_weights(self.demo, index, folder)) | (routers or {})
                for name in [s.name for s in self.demo.block_specs(index)]:
                    live.replace(name, weights[name])
        ours = log_probabilities(model, self.heldout)
        return float((self.original.exp() * (self.original - ours)).sum(-1).mean())

    def uniform(self, text: str) -> QuantPlan:
        config = AllocationConfig(policy="uniform", default={"wq": text})  # type: ignore[arg-type]
        return allocate(self.demo.specs, config, QuantizationConfig())


def log_probabilities(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([torch.log_softmax(model(b).logits, -1) for b in windows.split(16)])


@pytest.fixture(scope="module")
def lab(
    demo: Checkpoint,
    tokens: torch.Tensor,
    heldout: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    return Lab(demo, tokens, heldout, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def tables(demo: Checkpoint, tokens: torch.Tensor) -> dict[str, Any]:
    menu = [Scheme.parse(name) for name in AllocationConfig().formats]
    return {
        "alpha": alpha_table(demo, AlphaConfig()),
        "sensitivity": sensitivity_table(demo, tokens, menu, device=CPU, batch_size=16),
    }


@pytest.mark.parametrize("text", ["int8", "mxfp8"])
def test_eight_bits_are_as_good_as_the_original(lab: Lab, text: str) -> None:
    assert 0 < lab.kl(lab.uniform(text)) < 1e-3


@pytest.mark.parametrize("text", ["int4", "int3", "mxfp4"])
def test_gptq_beats_round_to_nearest_with_the_same_plan(lab: Lab, text: str) -> None:
    plan = lab.uniform(text)
    assert lab.kl(plan, "gptq") < lab.kl(plan, "rtn")


@pytest.mark.parametrize("granularity", ["fused", "linear"])
def test_budget_beats_uniform_mxfp4(lab: Lab, tables: dict[str, Any], granularity: str) -> None:
    config = AllocationConfig(target_bits=4.25, granularity=granularity)  # type: ignore[arg-type]
    plan = allocate(lab.demo.specs, config, QuantizationConfig(), **tables)
    assert plan.bits_per_weight <= 4.25
    assert lab.kl(plan) < lab.kl(lab.uniform("mxfp4"))


def test_budget_beats_twenty_random_plans_of_the_same_bits(
    lab: Lab, tables: dict[str, Any]
) -> None:
    config = AllocationConfig(target_bits=4.25, granularity="fused")
    plan = allocate(lab.demo.specs, config, QuantizationConfig(), **tables)
    best = lab.kl(plan)
    for seed in range(20):
        other = random_plan(lab.demo.specs, config, QuantizationConfig(), seed)
        assert abs(other.bits_per_weight - 4.25) < 0.05
        assert best < lab.kl(other), seed


def test_router_training_lowers_the_divergence_at_three_bits(lab: Lab) -> None:
    plan = lab.uniform("int3")
    blocks = lab.blocks(plan)
    config = RouterConfig(method="kl", epochs=4)
    result: RouterResult = repair_routers(
        lab.demo, blocks, trainable_routers(lab.demo, plan), lab.tokens, config, device=CPU
    )
    assert result.kl_after < result.kl_before
    assert lab.kl_of(blocks, result.tensors) < lab.kl_of(blocks)
