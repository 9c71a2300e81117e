"""Tiny random models of every supported type, saved as a user's folder would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from alphaquant.models.native import teach_transformers
from alphaquant.models.rows import ARCHITECTURES

VOCABULARY = 260
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
_SHARED: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
}
_LATENT: dict[str, Any] = _SHARED | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16},
    "phi3": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
    },
    "qwen2": {"head_dim": 8},
    "qwen3": {"head_dim": 16},
    "olmoe": _EXPERTS,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _EXPERTS
    | {
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": _EXPERTS | {"moe_intermediate_size": 24, "head_dim": 16},
    "deepseek": _SHARED,
    "deepseek_v2": _LATENT | {"q_lora_rank": None},
    "deepseek_v3": _LATENT
    | {"n_routed_experts": 6, "n_group": 2, "topk_group": 1, "q_lora_rank": 20},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
}
MIXTURES = [name for name in TYPES if any("experts" in key for key in TYPES[name])]
"""Types with routed experts."""
WITHOUT_ROW: dict[str, dict[str, Any]] = {
    "starcoder2": {"use_bias": True},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "olmo2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "dots1": {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "head_dim": 8,
    },
}
"""Types for the generic row."""
ROTATABLE = [name for name in TYPES if ARCHITECTURES[name].unrotatable is None]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def make_model(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    shard: str = "1GB",
    dtype: torch.dtype = torch.bfloat16,
    uneven_norms: bool = False,
    **changes: Any,
) -> Path:
    """Save a random model of `model_type` with its tokenizer; returns the folder."""
    torch.manual_seed(seed)
    teach_transformers(model_type)
    config = AutoConfig.for_model(
        model_type, **(_BASE | (TYPES | WITHOUT_ROW)[model_type] | changes)
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                # wide enough that routing and attention are not uniform
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif uneven_norms:
                parameter.uniform_(0.5, 1.5)
    model.to(dtype)
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:  # published ones are fp32
            buffer.data = torch.empty(buffer.shape).uniform_(-0.1, 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer().save_pretrained(folder)
    return folder
