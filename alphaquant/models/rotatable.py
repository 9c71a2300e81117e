"""What rotating a model's basis does to each of its tensors, and when it would change the model.

The residual stream x becomes x Q, the values v of each attention head become v R. With norms folded into
the linears behind them, RMSNorm commutes with Q, so each linear that reads or writes a turned basis takes
the rotation into its weight, and the model computes what it did. A tensor that no rule covers is a reason
to refuse. Imports no torch: `alphaquant plan` checks here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from alphaquant.config import RotationConfig
from alphaquant.errors import ConfigError, ModelError
from alphaquant.models.architecture import Architecture, required_int
from alphaquant.models.linear import HEAD, LinearSpec

HEAD_WEIGHT = f"{HEAD}.weight"
Basis: TypeAlias = Literal["residual", "heads"]
_NO = "Use rotation.kind=none."


@dataclass(frozen=True, slots=True)
class Turn:
    """What becomes of one tensor: a weight `[out, in]`, a bias `[out]` or a norm `[hidden]`."""

    inputs: Basis | None = None
    """Basis of its last dimension: a weight's inputs, a bias itself."""
    outputs: Basis | None = None
    """Basis of a weight's outputs."""
    rows: int | None = None
    """The outputs that are turned, counted from the last; None: all."""
    norm: str | None = None
    """Norm whose weight its columns are multiplied with."""
    ones: bool = False
    """A norm whose weight went into the linears behind it: it multiplies with one from now on."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of one attention, as their linears lay them out."""

    width: int
    """Channels per head."""
    values: int
    """Rows of v, or the last rows of qkv."""
    turned: bool


def turns(
    architecture: Architecture,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    specs: Sequence[LinearSpec],
    rotation: RotationConfig,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Turn]:
    """A Turn for every tensor that changes, lm_head.weight of a tied model among them.

    `config` is config.json, `shapes` are those of all tensors. Raises ModelError for a model that a rotation would change, ConfigError for a
    block that does not divide the hidden size.
    """
    if architecture.unrotatable:
        raise ModelError(
            f"a {architecture.model_type} model cannot be rotated exactly: {architecture.unrotatable}. {_NO}"
        )
    if trust_remote_code and config.get("auto_map"):
        raise ModelError(
            "the model runs Python code of its own (auto_map in config.json), so whether a rotation leaves it "
            f"unchanged is not known. {_NO}"
        )
    _check_block(architecture, shapes, rotation)
    embedding, final_norm = f"{architecture.embedding}.weight", f"{architecture.final_norm}.weight"
    found = {
        embedding: Turn(inputs="residual"),
        final_norm: Turn(ones=True),
        HEAD_WEIGHT: Turn(inputs="residual", norm=final_norm),
    }
    layout = heads(architecture, config, specs, rotation)
    for spec in specs:
        if spec.block is None:
            continue
        root = f"{architecture.blocks}.{spec.block}"
        turn = _linear(spec, architecture, root, layout)
        found[f"{spec.name}.weight"] = turn
        if spec.role != "qkv":  # no type has biases there
            found[f"{spec.name}.bias"] = Turn(inputs=turn.outputs)  # a vector of the output
        for norm in (architecture.attention_norm, architecture.mlp_norm):
            found[f"{root}.{norm}.weight"] = Turn(ones=True)
    _check_known(architecture, config, shapes, found)
    return {
        name: turn
        for name, turn in found.items()
        if turn != Turn() and (name in shapes or name == HEAD_WEIGHT)
    }


def heads(
    architecture: Architecture,
    config: Mapping[str, Any],
    specs: Sequence[LinearSpec],
    rotation: RotationConfig,
) -> Heads:
    """How wide attention heads are, and whether their values are turned.

    Raises ModelError when heads do not divide the projections, or when they are to be turned although
    something stands between v and o.
    """
    count = required_int(config, "num_attention_heads")
    cols = next(spec.cols for spec in specs if spec.role == "o")
    width = cols // count
    # behind the rows of q, as many as o has inputs, qkv holds as many of k as of v
    value_rows = {
        spec.rows if spec.role == "v" else (spec.rows - cols) // 2
        for spec in specs
        if spec.role in ("v", "qkv")
    }
    if not value_rows and rotation.heads:
        raise ModelError(
            f"the values of {architecture.model_type} attention come from kv_b_proj, head by head behind the keys, "
            "so heads cannot be rotated alone. Use rotation.heads=false."
        )
    if cols % count or any(rows % width for rows in value_rows):
        raise ModelError(
            f"config.json says num_attention_heads: {count}, which does not fit o_proj with {cols} inputs and "
            f"v_proj with {min(value_rows, default=cols)} outputs. Mend it, or download the model again."
        )
    clamp = architecture.value_clamp and config.get(architecture.value_clamp)
    if clamp is not None and rotation.heads:
        raise ModelError(
            f"config.json has {architecture.value_clamp}: {clamp}, which clamps the values of attention, so heads "
            "cannot be rotated exactly. Use rotation.heads=false."
        )
    turned = bool(value_rows) and rotation.heads is not False and clamp is None
    return Heads(width, min(value_rows, default=0), turned)


def head_block(width: int, block: int | None) -> int:
    """Channels of a head that are mixed with each other: as in the residual stream where that divides it."""
    return block if block and width % block == 0 else width


def _linear(spec: LinearSpec, architecture: Architecture, root: str, layout: Heads) -> Turn:
    inside: Basis | None = "heads" if layout.turned else None
    match spec.role:
        case "o":
            return Turn(inputs=inside, outputs="residual")
        case "down":
            return Turn(outputs="residual")
        case "q_b" | "kv_b":
            return Turn()  # from a normed latent to heads
        case "q" | "k" | "v" | "q_a" | "kv_a":
            norm = f"{root}.{architecture.attention_norm}.weight"
            return Turn("residual", inside if spec.role == "v" else None, norm=norm)
        case "qkv":
            norm = f"{root}.{architecture.attention_norm}.weight"
            return Turn("residual", inside, layout.values if inside else None, norm)
        case _:
            return Turn("residual", norm=f"{root}.{architecture.mlp_norm}.weight")


def _check_block(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], rotation: RotationConfig
) -> None:
    hidden = shapes[f"{architecture.embedding}.weight"][1]
    if rotation.block and hidden % rotation.block:
        fitting = [size for size in (16, 32, 64, 128, 256) if hidden % size == 0]
        raise ConfigError(
            f"rotation.block {rotation.block} does not divide the hidden size {hidden}; use "
            f"{', '.join(map(str, fitting))} or leave it empty"
        )


def _check_known(
    architecture: Architecture,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Turn],
) -> None:
    """Raise ModelError for a tensor that stands where nobody knows what a rotation does to it."""
    beside = (
        *(f".{norm}.weight" for norm in architecture.output_norms),
        *(f".{name}" for name in architecture.constants),
    )
    decoder = [
        f"{architecture.blocks}.{i}." for i in range(required_int(config, "num_hidden_layers"))
    ]
    for name in shapes:
        if name in found or name.endswith(beside) or "rotary_emb" in name:
            continue
        if name.startswith(f"{architecture.blocks}.") and not name.startswith(tuple(decoder)):
            raise ModelError(
                f"the checkpoint has {name}, which is behind the last decoder block: layers that predict further "
                "tokens read the residual stream and the embedding, and would read them in the wrong basis. "
                f"{_NO}"
            )
        raise ModelError(
            f"the model has {name}, which a plain {architecture.model_type} model has not: whether a rotation "
            f"leaves the model unchanged is not known. {_NO}"
        )
    for name, turn in found.items():
        if turn.ones and name not in shapes:
            raise ModelError(
                f"the model has no {name}, the norm in front of its linears, so it cannot be rotated. {_NO}"
            )
