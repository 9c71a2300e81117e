"""A plan that a consumer is asked about, the models that it is for, and ways to give their linears schemes.

Each says what our check answers, and what the real loader does with a checkpoint that is made all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import ATTENTION_ROLES, LinearSpec
from alphaquant.plan import QuantPlan

Answer = Literal["refuses", "wrong", "loads"]
"""wrong: the consumer says nothing, and leaves a part of its weights as they were or puts wrong ones in."""

_SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 4}
_QWEN = {
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 256,
    "mlp_only_layers": [],
}
_LATENT = {
    "moe_intermediate_size": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}
_TIED = {"head_dim": 64, "tie_word_embeddings": True}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES),
    "olmoe": ("olmoe", _SIZES),
    "mixtral": ("mixtral", _SIZES),
    "qwen2_moe": ("qwen2_moe", _SIZES | _QWEN),
    "llama-320": ("llama", _SIZES | {"intermediate_size": 320}),
    "llama-64": ("llama", _SIZES | {"intermediate_size": 64}),
    "llama-288": ("llama", _SIZES | {"vocab_size": 288}),
    "llama-320-tokens": ("llama", _SIZES | {"vocab_size": 320}),
    "olmoe-48": ("olmoe", _SIZES | {"intermediate_size": 48}),
    "olmoe-160": ("olmoe", _SIZES | {"hidden_size": 160, "intermediate_size": 96}),
    "phi3": ("phi3", _SIZES),
    "gemma": ("gemma", _SIZES | _TIED),
    "gemma2": ("gemma2", _SIZES | _TIED),
    "gemma3_text": ("gemma3_text", _SIZES | _TIED),
    "deepseek": ("deepseek", _SIZES | {"moe_intermediate_size": 128}),
    "deepseek_v2": ("deepseek_v2", _SIZES | _LATENT | _ONE_GROUP),
    "deepseek_v2-low": ("deepseek_v2", _SIZES | _LATENT | _ONE_GROUP | {"q_lora_rank": 128}),
    "deepseek_v3": (
        "deepseek_v3",
        _SIZES | _LATENT | {"q_lora_rank": 128, "topk_method": "noaux_tc"},
    ),
}
"""Type and config of the small random models, by name; the number is what is unusual about one."""

Mixture = Callable[[LinearSpec], str]


@dataclass(frozen=True, slots=True)
class Case:
    """A plan, where its checkpoint should load, and what becomes of that."""

    name: str
    model: str
    """A key of MODELS."""
    mixture: Mixture
    """The scheme of every linear that is no router, as text."""
    rule: str | None = None
    """The rule that our check names; None: it accepts."""
    answer: Answer = "loads"
    """What the consumer does."""
    export: str = "compressed-tensors"
    consumer: str = "vllm"
    activation: str | None = None
    routers: str = "bf16"
    head: str | None = None
    """The scheme of lm_head; None: kept, in no plan."""
    tensor_parallel: int = 1
    module_names: bool = False
    """Whether experts are written under GPTQModel's names, as for a second consumer."""
    consumers: tuple[str, ...] = ()
    """Asked for together; empty: `consumer` alone."""
    drawn: bool = False
    """Whether chance made it: no rule and no answer is expected then, but that our check and the consumer agree."""

    @property
    def asked(self) -> tuple[str, ...]:
        """The consumers that the config names."""
        return self.consumers or (self.consumer,)

    def plan(self, specs: list[LinearSpec]) -> QuantPlan:
        """The plan for a model's linears, lm_head among them where it is quantized."""
        own: dict[str, str | None] = {"router": self.routers, "lm_head": self.head}
        rows = [spec for spec in specs if spec.role != "lm_head" or self.head]
        schemes = {
            spec.name: Scheme.parse(own.get(spec.role) or self.mixture(spec)) for spec in rows
        }
        inputs = {name: self.activation for name, s in schemes.items() if s.format != "bf16"}
        return QuantPlan(rows, schemes, {n: a for n, a in inputs.items() if a is not None})


def every(text: str) -> Mixture:
    """One scheme for all."""
    return lambda spec: text


def experts(text: str, rest: str = "bf16") -> Mixture:
    """One scheme for all routed experts, and one for the rest."""
    return lambda spec: rest if spec.expert is None else text


def roles(rest: str, **schemes: str) -> Mixture:
    """Schemes by role, inside and outside experts alike."""
    return lambda spec: schemes.get(spec.role, rest)


def expert(number: int, text: str, rest: str) -> Mixture:
    """One expert of every block unlike the others, and attention bf16."""
    return lambda spec: "bf16" if spec.expert is None else text if spec.expert == number else rest


def blocks(*texts: str) -> Mixture:
    """Schemes that take turns from block to block."""
    return lambda spec: texts[(spec.block or 0) % len(texts)]


def attention(text: str, rest: str) -> Mixture:
    """One scheme for attention."""
    return lambda spec: text if spec.role in ATTENTION_ROLES else rest
