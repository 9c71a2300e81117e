"""Experts cut out of transformers' fused ones compute the same, on the same memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.models.experts import ExpertLinear, UnfusedExperts, is_fused_experts, unfuse
from tests.tiny import MIXTURES, VOCABULARY, make_model


@pytest.mark.parametrize("model_type", MIXTURES)
def test_unfused_experts_share_the_weights_and_the_outputs(tmp_path: Path, model_type: str) -> None:
    folder = make_model(tmp_path / "m", model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
    fused = [module for module in model.modules() if is_fused_experts(module)]
    with torch.no_grad():
        before = model(tokens).logits
        unfuse(model, share=True)
        experts = [module for module in model.modules() if isinstance(module, UnfusedExperts)]
        assert len(experts) == len(fused) > 0
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
        for module in fused:
            module.down_proj.zero_()  # type: ignore[operator]
        assert not any(bool(expert.down_proj.weight.any()) for expert in experts[-1])
        assert not torch.allclose(model(tokens).logits, before)


@pytest.mark.parametrize("tokens", [1, 31, 32, 45])
def test_tokens_of_an_expert_are_filled_up_and_come_back_alone(tokens: int) -> None:
    linear = ExpertLinear(64, 24, bias=True, dtype=torch.bfloat16)
    x = torch.randn(tokens, 64, dtype=torch.bfloat16, requires_grad=True)
    seen: list[int] = []
    linear.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    out = linear(x)
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)
    assert out.shape == (tokens, 24)
    assert seen == [tokens]  # who looks at it sees no fillings
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad[0].double(), linear.weight.double().sum(0), rtol=2e-2, atol=0.1
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_kernels_serve_every_number_of_tokens(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, rows = ExpertLinear(64, 24, dtype=dtype), set()
    original = torch.nn.functional.linear

    def counted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        rows.add(len(x))
        return original(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.bfloat16):
        for tokens in range(1, 100):
            linear(torch.randn(tokens, 64, dtype=dtype))
    assert rows == {32, 64, 96, 128}
