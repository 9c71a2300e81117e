"""Plans for vLLM: those that must be refused before they are exported, those that must load, and some drawn by chance."""

from __future__ import annotations

from random import Random

from alphaquant.models.linear import LinearSpec
from benchmarks.consumers.plans import (
    Case,
    attention,
    blocks,
    every,
    expert,
    experts,
    roles,
)


def _latents(spec: LinearSpec) -> str:
    """The two that read latents unlike those that make them."""
    return {"q_b": "int8", "kv_b": "int6"}.get(spec.role, "int4")


def _shared(spec: LinearSpec) -> str:
    """Shared experts unlike routed ones."""
    return "int8" if ".shared_experts." in spec.name else "int4"


def _alternating(spec: LinearSpec) -> str:
    return "bf16" if spec.expert is None else ("mxfp4", "mxfp8")[spec.expert % 2]


def _shared_gate(spec: LinearSpec) -> str:
    shared = spec.expert is None and spec.role == "gate"
    return "int8" if shared else "int4"


def _expert_gate(spec: LinearSpec) -> str:
    return "int8" if spec.expert is not None and spec.role == "gate" else "int4"


BROKEN = (
    Case("q-unlike-k", "llama", roles("int4", q="int8"), "fused", "refuses"),
    Case("q-kept", "llama", roles("int4", q="bf16"), "fused", "refuses"),
    Case("k-other-groups", "llama", roles("int4", k="int4-g64"), "fused", "refuses"),
    Case("gate-unlike-up", "llama", roles("int4", gate="int8"), "fused", "refuses"),
    Case("mxfp6", "llama", every("mxfp6"), "format", "refuses"),
    Case("fp8-groups", "llama", every("fp8-g32"), "format", "refuses"),
    Case("nvfp4-a-fp8", "llama", every("nvfp4"), "format", "refuses", activation="fp8"),
    Case("int4-a-mxfp8", "llama", every("int4"), "format", "refuses", activation="mxfp8"),
    Case("rows-shorter-than-groups", "llama-64", every("int4"), "shape", "refuses"),
    Case("experts-shorter-than-groups", "olmoe-48", experts("int8"), "shape", "refuses"),
    Case("two-gpus", "llama-320", every("int4-g64"), "tensor_parallel", "refuses", tensor_parallel=2),
    Case("last-expert-int8", "olmoe", expert(3, "int8", "int4"), "fused", "refuses"),
    Case("first-expert-int8", "olmoe", expert(0, "int8", "int4"), "fused", "wrong"),
    Case("one-expert-kept", "olmoe", expert(2, "bf16", "int4"), "fused", "refuses"),
    Case("experts-down-unlike", "olmoe", roles("int8", down="int4"), "fused", "refuses"),
    Case("experts-mxfp4-mxfp8", "olmoe", _alternating, "fused", "refuses"),
    Case("experts-fp8", "olmoe", experts("fp8-perchannel"), "format", "refuses"),
    Case("experts-int8-asym", "olmoe", experts("int8-asym"), "format", "refuses"),
    Case("experts-per-channel", "olmoe", experts("int4-perchannel"), "format", "refuses"),
    Case("experts-int4-a-int8", "olmoe", experts("int4"), "format", "refuses", activation="int8"),
    Case("experts-torn-words", "olmoe-48", experts("int3-g16"), "words", "refuses"),
    Case("router-int8", "olmoe", every("int8"), "router", "refuses", routers="int8"),
    Case("shared-gate-int8", "qwen2_moe", every("int8"), "router", "refuses", routers="int8"),
    Case("shared-gate-unlike-up", "qwen2_moe", _shared_gate, "fused", "refuses"),
    Case("gptq-int3", "llama", every("int3"), "format", "refuses", "gptq"),
    Case("gptq-groups-of-256", "llama", every("int4-g256"), "format", "refuses", "gptq"),
    Case("gptq-q-unlike-k", "llama", roles("int4", q="int8"), "fused", "refuses", "gptq"),
    Case("gptq-q-kept", "llama", roles("int4", q="bf16"), "fused", "refuses", "gptq"),
    Case("gptq-expert-gates", "olmoe", _expert_gate, "fused", "refuses", "gptq"),
    Case("gptq-narrow-experts", "olmoe-160", blocks("int4-g32", "int8-g32"), "uniform", "refuses", "gptq"),
    Case(
        "gptq-two-names",
        "mixtral",
        every("int4"),
        "names",
        "refuses",
        "gptq",
        module_names=True,
        consumers=("vllm", "gptqmodel"),
    ),
    *(Case(f"latents-unlike-{model}", model, roles("int4", kv_a="int8"), "fused", "refuses") for model in ("deepseek_v2-low", "deepseek_v3")),
    Case("gptq-latents-unlike", "deepseek_v3", roles("int4", kv_a="int8"), "fused", "refuses", "gptq"),
    Case("latent-kept", "deepseek_v3", roles("int4", q_a="bf16"), "fused", "refuses"),
    Case("attention-of-deepseek", "deepseek", every("int4"), "attention", "refuses"),
)  # fmt: skip

_DENSE = (
    *(f"int{bits}" for bits in (2, 3, 4, 6, 8)),
    *(f"int{bits}-asym" for bits in (2, 3, 4, 6, 8)),
    *("int4-g64", "int4-g32", "int3-g16", "int4-perchannel", "int8-perchannel"),
    *("fp8-perchannel", "mxfp4", "mxfp8", "nvfp4"),
)
_EXPERTS = (
    *(f"int{bits}" for bits in (2, 3, 4, 6, 8)),
    *(f"int{bits}-asym" for bits in (2, 3, 4, 6)),
    *("int4-g64", "int4-g32", "mxfp4", "mxfp8", "nvfp4"),
)
SOUND = (
    *(Case(f"all-{text}", "llama", every(text)) for text in _DENSE),
    *(Case(f"experts-{text}-{model}", model, experts(text)) for model in ("olmoe", "mixtral", "qwen2_moe") for text in _EXPERTS),
    *(Case(f"by-block-{model}", model, blocks("int4", "int8")) for model in ("llama", "olmoe", "mixtral", "qwen2_moe")),
    Case("by-block-mx", "olmoe", blocks("mxfp4", "mxfp8")),
    Case("by-block-kept", "olmoe", blocks("int4", "bf16")),
    Case("o-unlike-qkv", "llama", roles("int4", o="int8", down="int3")),
    Case("attention-nvfp4", "llama", attention("nvfp4", "fp8-perchannel")),
    Case("attention-int8", "qwen2_moe", attention("int8", "int3")),
    Case("fp8-both", "olmoe", every("fp8-perchannel"), activation="fp8"),
    Case("int8-both", "olmoe", every("int8-perchannel"), activation="int8"),
    Case("mxfp4-a-mxfp8", "olmoe", every("mxfp4"), activation="mxfp8"),
    Case("mxfp8-both", "llama", every("mxfp8"), activation="mxfp8"),
    Case("two-gpus-sound", "llama", every("int4"), tensor_parallel=2),
    Case("two-gpus-experts", "olmoe", every("int4-g64"), tensor_parallel=2),
    *(Case(f"quark-{text}-{model}", model, every(text), export="quark") for model in ("llama", "olmoe") for text in ("mxfp4", "mxfp6", "mxfp6_e3m2")),
    Case("quark-by-block", "olmoe", blocks("mxfp4", "mxfp6"), export="quark"),
    *(Case(f"gptq-{text}-{model}", model, every(text), export="gptq") for model in ("llama", "olmoe", "mixtral") for text in ("int4", "int8", "int4-g32", "int8-perchannel")),
    *(Case(f"gptq-by-block-{model}", model, blocks("int4", "int8"), export="gptq") for model in ("llama", "olmoe", "mixtral", "qwen2_moe")),
    Case("gptq-attention-kept", "olmoe", attention("bf16", "int4"), export="gptq"),
    Case("gptq-block-kept", "olmoe", blocks("bf16", "int4"), export="gptq"),
    Case("gptq-narrow-uniform", "olmoe-160", every("int4-g32"), export="gptq"),
)  # fmt: skip

_LATENT_MODELS = ("deepseek_v2", "deepseek_v2-low", "deepseek_v3")
_OTHERS = ("phi3", "gemma", "gemma2", "gemma3_text", *_LATENT_MODELS)
OTHER_MODELS = (
    *(Case(f"all-{text}-{model}", model, every(text)) for model in _OTHERS for text in ("int3", "int4", "int4-asym", "int8", "mxfp4", "mxfp8", "nvfp4")),
    *(Case(f"by-block-{model}", model, blocks("int4", "int8")) for model in _OTHERS),
    *(Case(f"attention-kept-{model}", model, attention("bf16", "int4")) for model in _OTHERS),
    *(Case(f"gptq-{text}-{model}", model, every(text), export="gptq") for model in _OTHERS for text in ("int4", "int8")),
    *(Case(f"gptq-by-block-{model}", model, blocks("int4", "int8"), export="gptq") for model in _OTHERS),
    *(Case(f"gptq-attention-kept-{model}", model, attention("bf16", "int4"), export="gptq") for model in _OTHERS),
    *(Case(f"quark-mxfp6-{model}", model, every("mxfp6"), export="quark") for model in ("phi3", "gemma", "deepseek_v3")),
    *(Case(f"latents-{model}", model, _latents) for model in _LATENT_MODELS),
    *(Case(f"shared-unlike-routed-{model}", model, _shared) for model in _LATENT_MODELS),
    Case("qkv-unlike-gate-up", "phi3", roles("int4", qkv="int8", gate_up="int3")),
    Case("qkv-kept", "phi3", roles("int4", qkv="bf16")),
    Case("gptq-qkv-unlike-gate-up", "phi3", roles("int4", qkv="int8"), export="gptq"),
    Case("gptq-kv-b-unlike", "deepseek_v3", roles("int4", kv_b="int8", o="int8"), export="gptq"),
    Case("experts-of-deepseek", "deepseek", experts("int4")),
)  # fmt: skip
"""Attention and MLPs of other shapes than llama's: one tensor on disk, latents, norms elsewhere."""

HEADS = (
    *(Case(f"head-{text}", "llama", every("int4"), head=text) for text in ("int3", "int4", "int8", "int8-perchannel", "fp8-perchannel", "mxfp4", "mxfp8", "nvfp4")),
    *(Case(f"head-int8-{model}", model, every("int4"), head="int8") for model in ("gemma", "gemma3_text", "olmoe", "mixtral", "phi3", "deepseek_v3")),
    *(Case(f"head-{text}-288", "llama-288", every("int4"), head=text) for text in ("int3-asym", "int4-asym")),
    *(Case(f"gptq-head-{text}", "llama-320-tokens", every("int4"), export="gptq", head=text) for text in ("int4", "int8")),
    Case("head-alone", "llama", every("bf16"), head="int8"),
    Case("head-int4-asym", "llama", every("int4"), "head", "refuses", head="int4-asym"),
    Case("head-int8-gemma2", "gemma2", every("int4"), "head", "refuses", head="int8"),
    Case("gptq-head-288", "llama-288", every("int4"), "head", "refuses", "gptq", head="int8"),
    Case("quark-head", "llama", every("mxfp4"), "head", "refuses", "quark", head="mxfp4"),
)  # fmt: skip
"""A quantized output projection; Gemma's are tied to their embeddings before."""

_MENUS = {
    "compressed-tensors": ("bf16", "int3", "int4-g32", "int4-perchannel", "int6", "int8", "int8-asym", "int2-asym", "fp8-perchannel", "mxfp4", "mxfp6", "mxfp8", "nvfp4"),
    "gptq": ("bf16", "int3", "int4", "int4-g64", "int8", "int8-g256"),
}  # fmt: skip


def _drawn(seed: int) -> Case:
    """A random plan: formats from a menu of three, mostly alike in what is fused."""
    random = Random(seed)
    export = random.choice(("compressed-tensors", "compressed-tensors", "gptq"))
    model = random.choice(("llama", "olmoe", "mixtral", "qwen2_moe"))
    menu, loose = random.sample(_MENUS[export], 3), random.choice((0, 0, 0.02))

    def mixture(spec: LinearSpec) -> str:
        alone = Random(f"{seed} {spec.name}")
        whose = spec.name if alone.random() < loose else spec.fused_key
        return Random(f"{seed} {whose}").choice(menu)

    return Case(f"drawn-{seed}", model, mixture, export=export, drawn=True)


DRAWN = tuple(_drawn(seed) for seed in range(24))
