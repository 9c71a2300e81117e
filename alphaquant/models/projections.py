"""The linears of attention and MLP as tables: path, role, what is read, what is one kernel when served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alphaquant.models.linear import Role


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear of a decoder block; everything is relative to the block."""

    path: str
    role: Role
    reads: str
    """Projections with equal `reads` share their input."""
    fused: str
    """Projections with equal `fused` are one kernel when served, so they share a format there."""


_OUTPUT = Projection("self_attn.o_proj", "o", "attention.out", "o")
ATTENTION = (
    Projection("self_attn.q_proj", "q", "attention.in", "qkv"),
    Projection("self_attn.k_proj", "k", "attention.in", "qkv"),
    Projection("self_attn.v_proj", "v", "attention.in", "qkv"),
    _OUTPUT,
)
"""Multi-head attention, with grouped keys and values or without."""
FUSED_ATTENTION = (Projection("self_attn.qkv_proj", "qkv", "attention.in", "qkv"), _OUTPUT)
"""The same with q, k and v as one tensor on disk."""

_EXPAND_KV = Projection("self_attn.kv_b_proj", "kv_b", "attention.kv_latent", "kv_b")
LATENT_ATTENTION = (
    Projection("self_attn.q_proj", "q", "attention.in", "q"),
    Projection("self_attn.kv_a_proj_with_mqa", "kv_a", "attention.in", "kv_a"),
    _EXPAND_KV,
    _OUTPUT,
)
"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) with queries of full rank."""
LOW_RANK_LATENT_ATTENTION = (
    Projection("self_attn.q_a_proj", "q_a", "attention.in", "qkv_a"),
    Projection("self_attn.kv_a_proj_with_mqa", "kv_a", "attention.in", "qkv_a"),
    Projection("self_attn.q_b_proj", "q_b", "attention.q_latent", "q_b"),
    _EXPAND_KV,
    _OUTPUT,
)
"""The same where queries come from a latent of their own; both latents are one kernel in vLLM."""

GATED: Mapping[str, Role] = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
"""A gated MLP, by path inside its folder."""
FUSED_GATED: Mapping[str, Role] = {"gate_up_proj": "gate_up", "down_proj": "down"}
"""The same with gate and up as one tensor on disk."""
