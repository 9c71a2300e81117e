from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.observe import RoutingWeight, gather
from tests.observed import run_and_collect
from tests.tiny import VOCABULARY, make_model

_BLOCK = 1


def tokens(count: int = 5, length: int = 16) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("olmoe", {"norm_topk_prob": False}),
        ("olmoe", {"norm_topk_prob": True}),
        ("mixtral", {}),
        ("qwen2_moe", {"norm_topk_prob": False}),
    ],
)
def test_experts_inputs_count_by_the_weight_of_their_output(
    tmp_path: Path, model_type: str, changes: dict[str, Any], power: int
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type, **changes))
    model = BlockModel(checkpoint, torch.device("cpu"), torch.float32)
    specs, block = checkpoint.block_specs(_BLOCK), model.block(_BLOCK)
    hidden = model.embed(tokens(), 2)
    router = next(s for s in specs if s.role == "router" and s.rows > 1)
    routed: list[tuple[torch.Tensor, ...]] = []
    module = model.linear(block, _BLOCK, router.name)
    module.register_forward_hook(
        lambda _m, args, out: routed.append((args[0].reshape(-1, router.cols), out[1], out[2]))
    )
    weighting: RoutingWeight = "p" if power == 1 else "p2"
    found, outputs = run_and_collect(model, block, _BLOCK, specs, hidden, weighting)
    expected = {}
    for expert in range(4):
        spec = next(s for s in specs if s.expert == expert and s.role == "up")
        total, mass = torch.zeros(spec.cols, spec.cols), 0.0
        for x, weight, index in routed:
            p = (weight * (index == expert)).sum(-1) ** power  # [tokens]
            total += 2 * x.T @ (x * p[:, None])
            mass += float(p.sum())
        expected[spec.input_key] = total / mass
        torch.testing.assert_close(found[spec.input_key].hessian, expected[spec.input_key])
        assert found[spec.input_key].mass == pytest.approx(mass)
        assert 1 <= found[spec.input_key].effective_tokens <= found[spec.input_key].tokens
    plain, same = run_and_collect(model, block, _BLOCK, specs, hidden)
    assert all(torch.equal(a, b) for a, b in zip(outputs, same, strict=True))
    for key, accumulator in plain.items():
        assert accumulator.tokens == found[key].tokens == accumulator.effective_tokens
        if ".experts." not in key:  # attention and router see every token once
            assert torch.equal(accumulator.hessian, found[key].hessian)
        else:
            assert not torch.equal(accumulator.hessian, found[key].hessian)


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "olmoe", "qwen2_moe", "deepseek_v2", "gpt_oss"]
)
def test_what_nobody_reads_is_left_out_and_changes_no_hessian(
    tmp_path: Path, model_type: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    model = BlockModel(checkpoint, torch.device("cpu"), torch.float32)
    specs, block = checkpoint.block_specs(_BLOCK), model.block(_BLOCK)
    hidden = model.embed(tokens(), 2)
    whole, outputs = run_and_collect(model, block, _BLOCK, specs, hidden)
    split = ([s for s in specs if s.expert != 1], [s for s in specs if s.expert == 1])
    passes = [part for part in split if part]
    with FlopCounterMode(display=False) as counted:
        seen = gather(model, block, _BLOCK, passes, HiddenStates(hidden))
    with FlopCounterMode(display=False) as all_of_it:
        after = [model.outputs(block, _BLOCK, batch) for batch in hidden]
    assert seen.keys() == whole.keys()
    for key, accumulator in whole.items():
        assert torch.equal(seen[key].hessian, accumulator.hessian)
    assert all(torch.equal(a, b) for a, b in zip(after, outputs, strict=True))
    down = sum(2 * s.size * whole[s.input_key].tokens for s in specs if s.role == "down")
    assert counted.get_total_flops() <= len(passes) * all_of_it.get_total_flops() - down
