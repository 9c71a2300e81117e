"""Every supported model type is a row. Adding a model is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from alphaquant.errors import ModelError
from alphaquant.models.architecture import Architecture
from alphaquant.models.generic import GenericArchitecture
from alphaquant.models.linear import Role
from alphaquant.models.projections import (
    FUSED_ATTENTION,
    FUSED_GATED,
    LATENT_ATTENTION,
    LOW_RANK_LATENT_ATTENTION,
)

_LATENT = (LATENT_ATTENTION, LOW_RANK_LATENT_ATTENTION)
_LATENT_NORMS = ("self_attn.q_a_layernorm", "self_attn.kv_a_layernorm")
_NORMS_BEHIND = (
    "norms stand behind its attention and MLP, whose outputs they scale channel by channel"
)
_MIXTRAL: dict[str, Role] = {"w1": "gate", "w3": "up", "w2": "down"}

_ROWS = (
    Architecture("llama"),
    Architecture("mistral"),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("phi3", attention=(FUSED_ATTENTION,), gated=FUSED_GATED),
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
    Architecture("olmoe", experts_keys=("num_experts",), router="mlp.gate", value_clamp="clip_qkv"),
    Architecture(
        "mixtral",
        experts_keys=("num_local_experts",),
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
        experts_keys=("num_experts",),
        router="mlp.gate",
        shared_expert="mlp.shared_expert",
        shared_gate="mlp.shared_expert_gate",
    ),
    Architecture("qwen3_moe", experts_keys=("num_experts", "num_local_experts"), router="mlp.gate"),
    Architecture(
        "deepseek",
        experts_keys=("n_routed_experts",),
        router="mlp.gate",
        shared_expert="mlp.shared_experts",
        assumes={"scoring_func": ("softmax",)},
    ),
    Architecture(
        "deepseek_v2",
        attention=_LATENT,
        output_norms=_LATENT_NORMS,
        experts_keys=("n_routed_experts",),
        router="mlp.gate",
        shared_expert="mlp.shared_experts",
        assumes={
            "scoring_func": ("softmax",),
            "topk_method": ("greedy", "group_limited_greedy"),
            "norm_topk_prob": (False,),
            "moe_layer_freq": (1,),
        },
    ),
    Architecture(
        "deepseek_v3",
        attention=_LATENT,
        output_norms=_LATENT_NORMS,
        experts_keys=("n_routed_experts",),
        router="mlp.gate",
        scoring="sigmoid",
        constants=("mlp.gate.e_score_correction_bias",),
        shared_expert="mlp.shared_experts",
        assumes={
            "scoring_func": ("sigmoid",),
            "topk_method": ("noaux_tc",),
            "moe_layer_freq": (1,),
        },
    ),
    Architecture(
        "gpt_oss",
        experts_keys=("num_local_experts", "num_experts"),
        fused_experts={"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
        decodes=("mxfp4",),
        router="mlp.router",
        constants=("self_attn.sinks",),
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
