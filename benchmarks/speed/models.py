"""Checkpoints to be timed on: random weights, so that they are there in seconds; their errors mean nothing.

Entries follow Student's t with four degrees of freedom, so that spectra have the heavy tails that trained
weights have, and estimators of the tail something to fit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)

from alphaquant.demo import demo_model_path

_DEGREES = 4
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Design:
    """A model's shape."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    experts: int = 0
    """0: a Llama. Otherwise an OLMoE with so many experts per block, four of them per token."""

    def build(self) -> PreTrainedModel:
        """The transformers model in bf16, weights as transformers draws them."""
        shared: dict[str, Any] = {
            "vocab_size": 1024,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "dtype": "bfloat16",
        }
        if not self.experts:
            return LlamaForCausalLM(LlamaConfig(**shared)).bfloat16()
        routed = {"num_experts": self.experts, "num_experts_per_tok": 4}
        return OlmoeForCausalLM(OlmoeConfig(**shared, **routed)).bfloat16()


DESIGNS = {
    "llama": Design(hidden=768, intermediate=2048, blocks=5, heads=12),
    "moe": Design(hidden=512, intermediate=256, blocks=3, heads=8, experts=32),
    "small": Design(hidden=256, intermediate=768, blocks=6, heads=8),
    "deep": Design(hidden=768, intermediate=2048, blocks=40, heads=12),
}
"""llama and moe: 35 and 41 million parameters in the decoder. small: 5 million, for whoever tunes its blocks. deep: 283
million in blocks of llama's size, because at 35 million, libraries take more memory than any model."""


def random_checkpoint(folder: Path, design: Design, seed: int = 0) -> Path:
    """Save a model with the demo's tokenizer; returns the folder, which is left as it is when it is there."""
    if (folder / "config.json").is_file():
        return folder
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = design.build()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                _draw(parameter)
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(demo_model_path() / name, folder)
    return folder


@torch.no_grad()
def _draw(parameter: torch.Tensor) -> None:
    """Fill a weight `[..., out, in]` with Student's t, of such a size that activations keep theirs."""
    normal = torch.randn(parameter.shape)
    chi = torch.randn(_DEGREES, *parameter.shape).square_().sum(0)
    deviation = (_DEGREES / (_DEGREES - 2) * parameter.shape[-1]) ** 0.5
    parameter.copy_(normal * (_DEGREES / chi).sqrt_() / deviation)


def described(design: Design) -> str:
    """What a design is, in words."""
    linears = 3 * design.hidden * design.intermediate * max(1, design.experts)
    weights = design.blocks * (4 * design.hidden**2 + linears)
    kind = f"OLMoE with {design.experts} experts of {design.intermediate} per block, four per token"
    if not design.experts:
        kind = f"Llama with MLPs of {design.intermediate}"
    return (
        f"{kind}: {design.blocks} blocks, {design.hidden} channels, {weights / 1e6:.1f} million weights in linears; "
        "random weights."
    )
