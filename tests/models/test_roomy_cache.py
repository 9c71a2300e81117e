"""A cache with room holds what a growing one does, where it was."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from alphaquant.models.roomy_cache import RoomyLayer, make_room


def _some(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, tokens, 4), torch.randn(2, 3, tokens, 6)


def test_tokens_are_added_without_moving_those_before() -> None:
    torch.manual_seed(0)
    first = _some(5)
    grown, roomy = DynamicLayer(), RoomyLayer(*first, room=9)
    grown.update(*first)
    places = roomy.keys.data_ptr(), roomy.values.data_ptr()
    for tokens in (1, 2, 1):
        new = _some(tokens)
        for ours, theirs in zip(roomy.update(*new), grown.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        assert (roomy.keys.data_ptr(), roomy.values.data_ptr()) == places
        assert roomy.get_seq_length() == grown.get_seq_length()
        assert roomy.get_mask_sizes(1) == grown.get_mask_sizes(1)


def test_only_layers_that_grow_are_replaced() -> None:
    config = AutoConfig.for_model(
        "gemma3_text",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
        vocab_size=64,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(tokens[:, :6], past_key_values=cache)
        make_room(cache, 9)
        assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, RoomyLayer]
        rest = [model(tokens[:, at : at + 1], past_key_values=cache).logits for at in (6, 7, 8)]
        expected = model(tokens).logits[:, 6:]
    torch.testing.assert_close(torch.cat(rest, dim=1), expected, rtol=1e-4, atol=1e-5)
