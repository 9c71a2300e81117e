"""Tiny models exported dense and packed, and what loaders make of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import QuantizationConfig
from alphaquant.export.dense import export_dense
from alphaquant.export.packed import export_packed
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.loading import load_model
from alphaquant.models.rows import ARCHITECTURES
from alphaquant.plan import QuantPlan
from tests.tiny import TYPES, make_model

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
LATENT: dict[str, Any] = {
    "moe_intermediate_size": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 16,
}
WIDER: dict[str, dict[str, Any]] = {
    "qwen2": {"head_dim": 16},  # GPTQ packs 32 channels at a time
    "qwen2_moe": {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    "qwen3_moe": {"moe_intermediate_size": 64},
    "deepseek": {"moe_intermediate_size": 64},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT | {"q_lora_rank": 32},
}
PACKABLE = [name for name in sorted(TYPES) if not ARCHITECTURES[name].fused_experts]
"""Types that packed formats have a place for."""
Mixture = Callable[[LinearSpec], str]


def make_wide(folder: Path, model_type: str, **changes: Any) -> Checkpoint:
    """A tiny model whose rows are multiples of 32, so that every format has whole groups."""
    return Checkpoint(
        make_model(folder, model_type, **(SIZES | WIDER.get(model_type, {}) | changes))
    )


def always(text: str) -> Mixture:
    return lambda spec: text


def by_block(spec: LinearSpec) -> str:
    return "int8-g32" if spec.block == 0 else "int4-g32"


def by_role(spec: LinearSpec) -> str:
    return {"q": "int8-g32", "o": "bf16", "down": "int3-g32"}.get(spec.role, "int4-g32")


def by_expert(spec: LinearSpec) -> str:
    return "bf16" if spec.expert is None else ("int2-g32", "int8-g32")[spec.expert % 2]


def partly_kept(spec: LinearSpec) -> str:
    return "bf16" if spec.expert == 1 else "mxfp4"


def three_leaves(spec: LinearSpec) -> str:
    """Neighbours whose tensors have other names: `weight_packed`, `weight` with a scale, `weight` alone."""
    return ("mxfp4", "mxfp8", "bf16")[(spec.expert or 0) % 3]


def some_zero_points(spec: LinearSpec) -> str:
    return "int4-g32-asym" if spec.block == 0 else "int6-g32"


def experts_kept(spec: LinearSpec) -> str:
    return "bf16" if spec.expert is not None else "int4-g32"


def attention_wider(spec: LinearSpec) -> str:
    return "int4-g32" if spec.expert is not None else "int8-g32"


def with_head(text: str) -> Mixture:
    return lambda spec: text if spec.role == "lm_head" else "int4-g32"


def plan_of(checkpoint: Checkpoint, mixture: Mixture, *, head: bool = False) -> QuantPlan:
    """The plan of a mixture; routers are kept, and lm_head unless `head`."""
    kept = ("router",) if head else ("router", "lm_head")
    specs = checkpoint.plannable if head else checkpoint.specs
    schemes = {
        spec.name: Scheme.parse("bf16" if spec.role in kept else mixture(spec)) for spec in specs
    }
    return QuantPlan(specs, schemes)


def exported(
    checkpoint: Checkpoint,
    mixture: Mixture,
    export: Any,
    root: Path,
    *,
    routers: dict[str, Tensor] | None = None,
    activations: Mapping[str, str] | None = None,
    module_names: bool = False,
    tokens: Tensor | None = None,
    method: Any = "rtn",
    head: bool = False,
    kv_cache: str | None = None,
) -> tuple[Path, Path]:
    """The dense and the packed folder of a model that was rounded, to nearest unless told otherwise."""
    folders = {name: root / name for name in ("blocks", "dense", "packed")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    blocks = quantize_blocks(
        checkpoint,
        plan_of(checkpoint, mixture, head=head),
        tokens,
        QuantizationConfig(method=method, scale_search="none"),
        device=CPU,
        batch_size=1,
        blocks=FreshBlocks(folders["blocks"]),
    )
    export_dense(checkpoint, blocks, routers or {}, folders["dense"])
    export_packed(
        checkpoint,
        blocks,
        routers or {},
        folders["packed"],
        export,
        activations=activations,
        module_names=module_names,
        kv_cache=kv_cache,
    )
    return folders["dense"], folders["packed"]


def logits(folder: Path) -> Tensor:
    return answers(load_model(folder, CPU, dtype=torch.bfloat16))


def stock_logits(folder: Path, *, computed: torch.dtype = torch.bfloat16, **options: Any) -> Tensor:
    """As plain transformers loads it, with nothing missing or left over, and computes in the dtype `computed`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, output_loading_info=True, **options
        )
        assert not any(
            info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        found = answers(model)  # decodes the weights, to bf16
        return found if computed == torch.bfloat16 else answers(model.to(computed))


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    tokens = torch.arange(48)[None] * 5 % 250
    found: Tensor = model(tokens).logits
    return found
