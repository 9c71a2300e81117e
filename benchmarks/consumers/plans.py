"""Plans that consumers are asked about: those that must be refused before they are exported, and those that must load.

Each says what our check answers, and what the real loader does with a checkpoint that is made all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES),
    "olmoe": ("olmoe", _SIZES),
    "mixtral": ("mixtral", _SIZES),
    "qwen2_moe": ("qwen2_moe", _SIZES | _QWEN),
    "llama-320": ("llama", _SIZES | {"intermediate_size": 320}),
    "llama-64": ("llama", _SIZES | {"intermediate_size": 64}),
    "olmoe-48": ("olmoe", _SIZES | {"intermediate_size": 48}),
    "olmoe-160": ("olmoe", _SIZES | {"hidden_size": 160, "intermediate_size": 96}),
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
        """The plan for a model's linears."""
        rows = [spec for spec in specs if spec.role != "lm_head"]
        schemes = {
            spec.name: Scheme.parse(self.routers if spec.role == "router" else self.mixture(spec))
            for spec in rows
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


def _by_expert(spec: LinearSpec) -> str:
    return "int4" if spec.expert is None else ("int2", "int3", "int4", "int8")[spec.expert % 4]


def _every_role(spec: LinearSpec) -> str:
    return {"q": "int8", "k": "int2", "v": "int3", "o": "bf16"}.get(spec.role, "int4")


def _exact(name: str, model: str, mixture: Mixture) -> Case:
    return Case(name, model, mixture, None, "loads", "gptq", "gptqmodel", module_names=True)


GPTQMODEL = (
    *(_exact(f"all-{text}-{model}", model, every(text)) for model in ("llama", "olmoe") for text in ("int2", "int3", "int4", "int8")),
    *(_exact(f"all-{text}", "llama", every(text)) for text in ("int4-g16", "int4-g32", "int4-g64", "int8-perchannel", "int4-g256")),
    *(_exact(f"by-block-{model}", model, blocks("int4", "int8")) for model in ("llama", "mixtral", "qwen2_moe")),
    _exact("by-role", "llama", _every_role),
    _exact("by-expert", "olmoe", _by_expert),
    _exact("by-expert-mixtral", "mixtral", _by_expert),
    _exact("block-kept", "olmoe", blocks("bf16", "int4")),
)  # fmt: skip


def _stock(name: str, model: str, mixture: Mixture, answer: Answer = "loads") -> Case:
    rule = None if answer == "loads" else "format"
    return Case(name, model, mixture, rule, answer, consumer="transformers")


TRANSFORMERS = (
    *(_stock(f"all-{text}-llama", "llama", every(text)) for text in ("int2", "int3", "int4", "int6", "int8", "int4-g32", "int3-perchannel", "fp8-perchannel", "fp8-g32", "mxfp4", "mxfp6", "mxfp8", "nvfp4")),
    *(_stock(f"all-{text}-olmoe", "olmoe", every(text)) for text in ("int3", "int4", "int8", "mxfp4", "mxfp6", "fp8-perchannel")),
    _stock("by-role", "llama", _every_role),
    _stock("by-block", "llama", blocks("int4", "int8")),
    *(_stock(f"{text}-llama", "llama", every(text), "refuses") for text in ("int4-asym", "int8-asym", "int3-asym")),
)  # fmt: skip
"""With plain transformers; mixtures of experts need `import alphaquant.hf`, which is tested in the project's own environment."""
