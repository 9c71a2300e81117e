"""Architecture: where a model type keeps its attention, experts, routers and norms.

Names are those of the checkpoint on disk; shapes come from the safetensors headers, so a row of
`alphaquant/models/rows.py` needs no formulas. Imports no torch: `alphaquant plan` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from alphaquant.errors import ModelError, nearest
from alphaquant.models.linear import HEAD, LinearSpec, Role
from alphaquant.models.originals import ORIGINALS
from alphaquant.models.projections import ATTENTION, GATED, Projection

Scoring: TypeAlias = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Architecture:
    """One row per `model_type`; every path is relative to a decoder block on disk."""

    model_type: str
    kind: ClassVar[Literal["auto", "generic"]] = "auto"
    """The value of `model.architecture` that leads here."""
    attention: tuple[tuple[Projection, ...], ...] = (ATTENTION,)
    """Layouts of attention; a checkpoint has the one whose first linear it holds."""
    gated: Mapping[str, Role] = field(default_factory=lambda: GATED)
    """Projections of the MLP and of a shared expert."""
    experts_keys: tuple[str, ...] = ()
    """Config keys that count the routed experts: the published one, then transformers' own; none for dense models."""
    experts: str = "mlp.experts"
    """Folder of the routed experts."""
    fused_experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors `[experts, in, out]` of that folder that hold all experts at once, and the projections whose outputs
    take turns in each."""
    decodes: tuple[str, ...] = ("fp8",)
    """Methods of quantization_config, rows of `ORIGINALS`, whose tensors are decoded when they are read."""
    expert_projections: Mapping[str, Role] = field(default_factory=lambda: GATED)
    router: str | None = None
    scoring: Scoring = "softmax"
    """What makes routing weights of the router's logits."""
    assumes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Config keys that transformers' class does not look at, with the only values it is right for."""
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
    constants: tuple[str, ...] = ()
    """Tensors that no linear and no norm owns and that stand beside the residual stream: they stay as they are."""
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

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a model with this config.json can be an original: not packed, or decoded when it is read."""
        settings = config.get("quantization_config")
        if not settings:
            return True
        method = settings.get("quant_method")
        return method in self.decodes and ORIGINALS[method].fits(settings)

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output projection is the embedding, by config.json or the type's default."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def is_moe_block(self, config: Mapping[str, Any], block: int) -> bool:
        """Whether decoder block `block` holds routed experts."""
        if not self.experts_keys:
            return False
        step, every = (
            required_int(config, key) if config.get(key) else 1
            for key in ("decoder_sparse_step", "moe_layer_freq")
        )
        first = (
            required_int(config, "first_k_dense_replace")
            if config.get("first_k_dense_replace")
            else 0
        )
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple):
            raise ModelError(
                f"config.json has mlp_only_layers: {dense!r}; it must be a list of block numbers. "
                "Mend it, or download the model again."
            )
        placed = block >= first and block % every == 0
        return placed and block not in dense and (block + 1) % step == 0

    def experts_per_block(self, config: Mapping[str, Any]) -> int:
        """Number of routed experts of one MoE block; 0 for a dense model."""
        if not self.experts_keys:
            return 0
        known = (key for key in self.experts_keys if key in config)
        return required_int(config, next(known, self.experts_keys[0]))

    def linears(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> list[LinearSpec]:
        """Every linear of the model in block order, lm_head last when it is not tied.

        `shapes` maps tensor names on disk to their shapes. Raises ModelError for a tensor that the
        architecture needs and the checkpoint lacks, and for a config that transformers would misread.
        """
        self._check_assumptions(config)
        tied = self.is_tied(config)
        blocks = required_int(config, "num_hidden_layers")
        self._require_ends(shapes, tied)
        specs = [
            spec for block in range(blocks) for spec in self._block_linears(config, shapes, block)
        ]
        if not tied:
            specs.append(_spec(shapes, HEAD, "lm_head", None, None, f"{HEAD}.in", HEAD))
        return specs

    def _check_assumptions(self, config: Mapping[str, Any]) -> None:
        """Raise ModelError for a setting that transformers passes over: its logits would be another model's."""
        for key, allowed in self.assumes.items():
            value = config.get(key)
            if value is not None and value not in allowed:
                raise ModelError(
                    f"config.json has {key}: {value!r}; transformers computes a {self.model_type} model as if it "
                    f"were {' or '.join(map(repr, allowed))}, so its outputs would be wrong. Such a model is not "
                    "supported."
                )

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
            one(linear.path, linear.role, linear.reads, linear.fused)
            for linear in self._attention(shapes, root)
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

    def _attention(
        self, shapes: Mapping[str, tuple[int, ...]], root: str
    ) -> tuple[Projection, ...]:
        """The layout that the block at `root` has; the last one where none fits, whose linears are then missed."""
        fitting = (
            layout for layout in self.attention if f"{root}.{layout[0].path}.weight" in shapes
        )
        return next(fitting, self.attention[-1])

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
