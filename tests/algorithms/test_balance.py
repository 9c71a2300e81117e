from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.algorithms.balance import balanced_choice, expert_loads, idlest_share
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from tests.algorithms.test_quantize_model import CPU, windows
from tests.observed import run_and_collect
from tests.tiny import MIXTURES, make_model


def pool(count: int = 60) -> torch.Tensor:
    """Loads `[count, 2, 4]` of windows of 32 choices that favour the first experts, each in its way."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(count * 2, 4, generator=generator) * torch.tensor([4.0, 2.0, 1.0, 1.0])
    chosen = torch.multinomial(shares, 32, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(chosen, 4).sum(1).view(count, 2, 4)


def unevenness(loads: torch.Tensor) -> float:
    total = loads.sum(0).double()
    return float((total / total.mean(-1, keepdim=True) - 1).square().sum())


def test_chosen_windows_are_distinct_and_more_even_than_the_first_ones() -> None:
    loads = pool()
    chosen = balanced_choice(loads, 15)
    assert len(set(chosen)) == 15
    assert unevenness(loads[chosen]) < 0.7 * unevenness(loads[:15])
    assert idlest_share(loads[chosen]) > idlest_share(loads[:15])
    assert balanced_choice(loads, 15) == chosen


def test_windows_that_make_up_for_each_other_are_found() -> None:
    loads = torch.tensor([[[4, 0]], [[4, 0]], [[3, 1]], [[0, 4]]])
    assert sorted(balanced_choice(loads, 3)) != [0, 1, 2]
    assert idlest_share(loads[balanced_choice(loads, 3)]) == pytest.approx(5 / 6)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_loads_are_the_tokens_that_reach_each_expert(tmp_path: Path, model_type: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    tokens = windows(5, 12)
    loads = expert_loads(checkpoint, tokens, CPU, 2)
    assert (loads.sum(-1) == 12 * 2).all()
    model = BlockModel(checkpoint, CPU, torch.float32)
    hidden = model.embed(tokens, 5)
    for index in range(checkpoint.blocks):
        specs = checkpoint.block_specs(index)
        seen, hidden = run_and_collect(model, model.block(index), index, specs, hidden)
    up = [s for s in specs if s.expert is not None and s.role == "up"]
    assert [seen[s.input_key].tokens for s in up] == loads[:, -1].sum(0).tolist()


def test_a_dense_model_has_no_loads(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "llama"))
    assert expert_loads(checkpoint, windows(3, 8), CPU, 2).shape == (3, 0, 0)
