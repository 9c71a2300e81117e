"""Every supported model type is a row. Adding a model is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from alphaquant.errors import ModelError
from alphaquant.models.architecture import Architecture
from alphaquant.models.generic import GenericArchitecture
from alphaquant.models.linear import Role

_FUSED_ATTENTION: dict[str, Role] = {"self_attn.qkv_proj": "qkv", "self_attn.o_proj": "o"}
_FUSED_GATED: dict[str, Role] = {"gate_up_proj": "gate_up", "down_proj": "down"}
_NORMS_BEHIND = (
    "norms stand behind its attention and MLP, whose outputs they scale channel by channel"
)
_MIXTRAL: dict[str, Role] = {"w1": "gate", "w3": "up", "w2": "down"}

_ROWS = (
    Architecture("llama"),
    Architecture("mistral"),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("phi3", attention=_FUSED_ATTENTION, gated=_FUSED_GATED),
    Architecture("gemma", norm_offset=1.0, tied_by_default=True),
    Architecture(
        "gemma2",
        norm_offset=1.0,
        tied_by_default=True,
        unrotatable=_NORMS_BEHIND,
        mlp_norm="pre_feedforward_layernorm",
    ),
    Architecture(
        "gemma3_text",
        norm_offset=1.0,
        tied_by_default=True,
        unrotatable=_NORMS_BEHIND,
        mlp_norm="pre_feedforward_layernorm",
    ),
    Architecture("olmoe", experts_key="num_experts", router="mlp.gate", value_clamp="clip_qkv"),
    Architecture(
        "mixtral",
        experts_key="num_local_experts",
        experts="block_sparse_moe.experts",
        expert_projections=_MIXTRAL,
        router="block_sparse_moe.gate",
        module_names=(
            (r"\bblock_sparse_moe\b", "mlp"),
            (r"\bw1\b", "gate_proj"),
            (r"\bw3\b", "up_proj"),
            (r"\bw2\b", "down_proj"),
        ),
        disk_names=(
            (r"\bmlp\b", "block_sparse_moe"),
            (r"\bgate_proj\b", "w1"),
            (r"\bup_proj\b", "w3"),
            (r"\bdown_proj\b", "w2"),
        ),
    ),
    Architecture(
        "qwen2_moe",
        experts_key="num_experts",
        router="mlp.gate",
        shared_expert="mlp.shared_expert",
        shared_gate="mlp.shared_expert_gate",
    ),
)
ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _ROWS}


def architecture_of(
    config: Mapping[str, Any],
    kind: Literal["auto", "generic"] = "auto",
    *,
    trust_remote_code: bool = False,
) -> Architecture:
    """The row of a model's config.json, or a generic one. Raises ModelError that lists the rows."""
    model_type = str(config.get("model_type", ""))
    if kind == "generic":
        return GenericArchitecture(model_type)
    row = ARCHITECTURES.get(model_type)
    if row is not None:
        return row
    if config.get("auto_map") and not trust_remote_code:
        raise ModelError(
            f"model_type {model_type!r} needs Python code that comes with the model, and "
            "model.trust_remote_code is false. Set it to true only if you trust the model's author. "
            f"Types that need no remote code: {', '.join(ARCHITECTURES)}."
        )
    raise ModelError(
        f"model_type {model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}. For another "
        "decoder set model.architecture=generic, or add a row in alphaquant/models/rows.py."
    )
