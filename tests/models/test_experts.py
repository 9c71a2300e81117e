"""Experts cut out of transformers' fused ones compute the same, on the same memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.models.experts import UnfusedExperts, is_fused_experts, unfuse
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
