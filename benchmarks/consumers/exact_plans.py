"""Plans for consumers that run here, so that what they decode is compared with the dense checkpoint."""

from __future__ import annotations

from alphaquant.models.linear import LinearSpec
from benchmarks.consumers.plans import Answer, Case, Mixture, blocks, every, experts


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


def _stock(
    name: str, model: str, mixture: Mixture, answer: Answer = "loads", head: str | None = None
) -> Case:
    rule = None if answer == "loads" else "alphaquant.hf"
    return Case(name, model, mixture, rule, answer, consumer="transformers", head=head)


TRANSFORMERS = (
    *(_stock(f"all-{text}-llama", "llama", every(text)) for text in ("int2", "int3", "int4", "int6", "int8", "int4-g32", "int3-perchannel", "fp8-perchannel", "fp8-g32", "mxfp4", "mxfp6", "mxfp8", "nvfp4")),
    *(_stock(f"all-{text}-olmoe", "olmoe", every(text)) for text in ("int3", "int4", "int8", "mxfp4", "mxfp6", "fp8-perchannel")),
    _stock("by-role", "llama", _every_role),
    _stock("by-block", "llama", blocks("int4", "int8")),
    _stock("head-int4", "llama", every("int8"), head="int4"),
    *(_stock(f"{text}-llama", "llama", every(text), "refuses") for text in ("int4-asym", "int8-asym", "int3-asym")),
    _stock("head-int4-asym", "llama", every("int8"), "refuses", head="int4-asym"),
    *(_stock(f"{text}-olmoe", "olmoe", every(text), "refuses") for text in ("int4-asym", "fp8-g32", "mxfp8")),
    _stock("nvfp4-olmoe", "olmoe", every("nvfp4"), "wrong"),
    _stock("by-block-olmoe", "olmoe", blocks("int4", "int8"), "wrong"),
    _stock("by-expert-olmoe", "olmoe", _by_expert, "refuses"),
    Case("router-int8", "olmoe", every("int4"), "router", "wrong", consumer="transformers", routers="int8"),
    _stock("experts-kept", "olmoe", experts("bf16", "int4"), "refuses"),
)  # fmt: skip
"""With plain transformers. What it does after `import alphaquant.hf` is tested in the project's own environment."""
