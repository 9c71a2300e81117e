"""Architecture: where a model type keeps its attention, experts, routers and norms.

Names are those of the checkpoint on disk; shapes come from the safetensors headers, so a row of
`alphaquant/models/rows.py` needs no formulas. Imports no torch: `alphaquant plan` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from alphaquant.errors import ModelError, nearest
from alphaquant.models.linear import HEAD, LinearSpec, Role

_ATTENTION: dict[str, Role] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
}
_GATED: dict[str, Role] = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True)
class Architecture:
    """One row per `model_type`; every path is relative to a decoder block on disk."""

    model_type: str
    kind: ClassVar[Literal["auto", "generic"]] = "auto"
    """The value of `model.architecture` that leads here."""
    experts_key: str | None = None
    """Config key that counts the routed experts; None for dense models."""
    experts: str = "mlp.experts"
    """Folder of the routed experts."""
    attention: Mapping[str, Role] = field(default_factory=lambda: _ATTENTION)
    gated: Mapping[str, Role] = field(default_factory=lambda: _GATED)
    """Projections of the MLP and of a shared expert."""
    expert_projections: Mapping[str, Role] = field(default_factory=lambda: _GATED)
    router: str | None = None
    shared_expert: str | None = None
    shared_gate: str | None = None
    module_names: tuple[tuple[str, str], ...] = ()
    """(regular expression on disk, replacement in transformers' module tree) where names differ."""
    disk_names: tuple[tuple[str, str], ...] = ()
    """The inverse of `module_names`."""
    mlp: str = "mlp"
    attention_norm: str = "input_layernorm"
    """Norm whose output q, k and v read."""
    mlp_norm: str = "post_attention_layernorm"
    """Norm whose output the MLP, experts and routers read."""
    output_norms: tuple[str, ...] = ("self_attn.q_norm", "self_attn.k_norm")
    """Norms of projection outputs, which stand beside the residual stream."""
    norm_offset: float = 0.0
    """What is added to a norm's stored weight before it multiplies: 1 where files hold w - 1."""
    tied_by_default: bool = False
    """Whether the head is tied where config.json does not say."""
    value_clamp: str | None = None
    """Config key of a clamp on the values of attention; where it is set, heads cannot be rotated."""
    unrotatable: str | None = None
    """Why the residual stream cannot be rotated exactly, such as norms behind a block; None: it can."""
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """The row with what a model's tensors tell, where it is generic. Raises ModelError when they do not."""
        return self

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output projection is the embedding, by config.json or the type's default."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def is_moe_block(self, config: Mapping[str, Any], block: int) -> bool:
        """Whether decoder block `block` holds routed experts."""
        if self.experts_key is None:
            return False
        step = (
            required_int(config, "decoder_sparse_step") if config.get("decoder_sparse_step") else 1
        )
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple):
            raise ModelError(
                f"config.json has mlp_only_layers: {dense!r}; it must be a list of block numbers. "
                "Mend it, or download the model again."
            )
        return block not in dense and (block + 1) % step == 0

    def experts_per_block(self, config: Mapping[str, Any]) -> int:
        """Number of routed experts of one MoE block; 0 for a dense model."""
        return required_int(config, self.experts_key) if self.experts_key else 0

    def linears(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> list[LinearSpec]:
        """Every linear of the model in block order, lm_head last when it is not tied.

        `shapes` maps tensor names on disk to their shapes. Raises ModelError for a tensor that the
        architecture needs and the checkpoint lacks.
        """
        tied = self.is_tied(config)
        blocks = required_int(config, "num_hidden_layers")
        self._require_ends(shapes, tied)
        specs = [
            spec for block in range(blocks) for spec in self._block_linears(config, shapes, block)
        ]
        if not tied:
            specs.append(_spec(shapes, HEAD, "lm_head", None, None, f"{HEAD}.in", HEAD))
        return specs

    def with_head(
        self, specs: Sequence[LinearSpec], shapes: Mapping[str, tuple[int, ...]]
    ) -> list[LinearSpec]:
        """What a plan may name: `specs`, and of a tied model the head, which quantization makes a matrix of its own."""
        if any(spec.role == "lm_head" for spec in specs):
            return list(specs)
        rows, cols = shapes[f"{self.embedding}.weight"]
        return [
            *specs,
            LinearSpec(HEAD, "lm_head", None, None, rows, cols, f"{HEAD}.in", HEAD),
        ]

    def _require_ends(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Raise ModelError for a missing embedding, final norm or untied output projection."""
        needed = {f"{self.embedding}.weight": 2, f"{self.final_norm}.weight": 1}
        if not tied:
            needed["lm_head.weight"] = 2
        for name, dimensions in needed.items():
            shape = shapes.get(name)
            if shape is None:
                reason = (
                    " (config.json does not set tie_word_embeddings to true)"
                    if name == "lm_head.weight"
                    else ""
                )
                raise ModelError(
                    f"tensor {name} is missing from the checkpoint{reason}; nearest: "
                    f"{nearest(name, shapes)}. Download the model again, or check its config.json."
                )
            if len(shape) != dimensions:
                raise ModelError(
                    f"tensor {name} has shape {list(shape)}; it needs {dimensions} dimensions. "
                    "Download the model again."
                )

    def _block_linears(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], block: int
    ) -> list[LinearSpec]:
        root = f"{self.blocks}.{block}"

        def one(
            path: str, role: Role, reads: str, fused: str, expert: int | None = None
        ) -> LinearSpec:
            return _spec(
                shapes, f"{root}.{path}", role, block, expert, f"{root}.{reads}", f"{root}.{fused}"
            )

        specs = [
            one(
                path,
                role,
                "attention.out" if role == "o" else "attention.in",
                "o" if role == "o" else "qkv",
            )
            for path, role in self.attention.items()
        ]
        if not self.is_moe_block(config, block):
            return specs + self._gated(one, self.mlp, self.mlp)
        if self.router:
            specs.append(one(self.router, "router", "mlp.in", "router"))
        for expert in range(self.experts_per_block(config)):
            folder = f"{self.experts}.{expert}"
            specs += [
                one(
                    f"{folder}.{path}",
                    role,
                    f"{folder}.{'out' if role == 'down' else 'in'}",
                    "experts",
                    expert,
                )
                for path, role in self.expert_projections.items()
            ]
        if self.shared_expert:
            specs += self._gated(one, self.shared_expert, self.shared_expert)
        if self.shared_gate:
            specs.append(one(self.shared_gate, "router", "mlp.in", "shared_gate"))
        return specs

    def _gated(self, one: Any, folder: str, key: str) -> list[LinearSpec]:
        return [
            one(
                f"{folder}.{path}",
                role,
                f"{key}.{'out' if role == 'down' else 'in'}",
                f"{key}.down" if role == "down" else f"{key}.gate_up",
            )
            for path, role in self.gated.items()
        ]

    def module_name(self, name: str) -> str:
        """Name inside transformers' module tree (experts unfused) of a name on disk."""
        return _substitute(name, self.module_names)

    def disk_name(self, name: str) -> str:
        """Name on disk of a name inside transformers' module tree (experts unfused)."""
        return _substitute(name, self.disk_names)


def required_int(config: Mapping[str, Any], key: str) -> int:
    """A count of config.json. Raises ModelError naming the key unless it is an integer from 1 on."""
    value = config.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    found = f"has {key}: {value!r}" if key in config else f"has no {key}"
    raise ModelError(
        f"config.json {found}; it must be an integer of at least 1. "
        "Mend it, or download the model again."
    )


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _spec(
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    role: Role,
    block: int | None,
    expert: int | None,
    reads: str,
    fused: str,
) -> LinearSpec:
    shape = shapes.get(f"{name}.weight")
    if shape is None:
        raise ModelError(
            f"tensor {name}.weight is missing from the checkpoint; nearest: "
            f"{nearest(f'{name}.weight', shapes)}. Download the model again, or check its config.json."
        )
    if len(shape) != 2:
        raise ModelError(f"tensor {name}.weight has shape {list(shape)}; a linear needs [out, in]")
    return LinearSpec(name, role, block, expert, shape[0], shape[1], reads, fused)
