"""Where a block can take up a scale of a linear's inputs, exactly, so that nothing is left to do at inference.

Inputs that are divided channel by channel, with the weights behind them multiplied by as much, leave a model as it
is. The division goes into what makes the inputs: the weight of an RMSNorm, the rows of v_proj in front of o_proj
(attention mixes tokens, not channels), the rows of up_proj in front of down_proj (the gate multiplies channel by
channel). Whatever else stands in between is a reason to leave a group out. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphaquant.models.architecture import Architecture, required_int
from alphaquant.models.linear import LinearSpec, Role

_AT_NORMS: tuple[tuple[str, frozenset[Role]], ...] = (
    ("attention_norm", frozenset({"q", "k", "v", "qkv"})),
    ("mlp_norm", frozenset({"gate", "up", "gate_up", "router"})),
)
_KNOWN: frozenset[str] = frozenset({"o", "down"}).union(*(roles for _, roles in _AT_NORMS))


@dataclass(frozen=True, slots=True)
class Fold:
    """Linears that read the same channels, and what makes these."""

    source: str
    """A norm or a linear, by name without `.weight`."""
    readers: tuple[LinearSpec, ...]
    """Every linear that reads what the source makes."""
    width: int
    """Channels in a row that keep their order on the way: of a head, else all."""
    copies: int = 1
    """How often each such stretch is read, one behind the other: query heads that share their values."""


@dataclass(frozen=True, slots=True)
class NoFold:
    """Linears whose inputs cannot be scaled exactly."""

    roles: tuple[Role, ...]
    reason: str


def folds(
    architecture: Architecture,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    specs: Sequence[LinearSpec],
) -> Iterator[Fold | NoFold]:
    """Every group of one block's linears `specs`; `config` is config.json, `shapes` are those of all tensors."""
    if architecture.kind == "generic":  # nobody knows what stands between its linears
        yield NoFold(tuple(dict.fromkeys(s.role for s in specs)), "it has a generic row")
        return
    root = f"{architecture.blocks}.{specs[0].block}"
    stranger = _stranger(shapes, specs, root)
    for field, roles in _AT_NORMS:
        norm = f"{root}.{getattr(architecture, field)}"
        readers = tuple(spec for spec in specs if spec.role in roles)
        reason = architecture.unrotatable or stranger
        if architecture.norm_offset:
            reason = reason or "norms are stored as their distance from one"
        if f"{norm}.weight" not in shapes:
            reason = reason or f"there is no {norm}"
        elif f"{norm}.bias" in shapes:
            reason = reason or f"{norm} has a bias"
        yield (
            NoFold(tuple(dict.fromkeys(spec.role for spec in readers)), reason)
            if reason
            else Fold(norm, readers, shapes[f"{norm}.weight"][0])
        )
    yield _values(architecture, config, shapes, specs)
    for down in (spec for spec in specs if spec.role == "down"):
        folder = down.name.rpartition(".")[0]
        up = [s for s in specs if s.role == "up" and s.name.rpartition(".")[0] == folder]
        if len(up) == 1 and f"{up[0].name}.bias" not in shapes and up[0].rows == down.cols:
            yield Fold(up[0].name, (down,), down.cols)
        else:
            yield NoFold(("down",), f"{down.name} has no up_proj without bias before it")


def _values(
    architecture: Architecture,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    specs: Sequence[LinearSpec],
) -> Fold | NoFold:
    """o_proj behind v_proj, heads that share their values included."""
    by_role = {spec.role: spec for spec in specs}
    v, o = by_role.get("v"), by_role.get("o")
    clamp = architecture.value_clamp and config.get(architecture.value_clamp)
    if v is None or o is None:
        return NoFold(("o",), "there is no v_proj of its own")
    if clamp is not None:
        return NoFold(("o",), f"{architecture.value_clamp} {clamp} clamps values")
    if f"{v.name}.bias" in shapes:
        return NoFold(("o",), f"{v.name} has a bias")
    width = o.cols // required_int(config, "num_attention_heads")
    if o.cols % v.rows or not width or v.rows % width:
        return NoFold(("o",), f"{v.rows} values do not divide into heads of {o.cols} inputs")
    return Fold(v.name, (o,), width, o.cols // v.rows)


def _stranger(
    shapes: Mapping[str, tuple[int, ...]], specs: Sequence[LinearSpec], root: str
) -> str | None:
    """A weight that may read a norm's output without anybody knowing; None where there is none."""
    if other := next((spec.name for spec in specs if spec.role not in _KNOWN), None):
        return f"what {other} reads is not known"
    linears = {f"{spec.name}.weight" for spec in specs}
    for name, shape in shapes.items():
        if name.startswith(f"{root}.") and len(shape) > 1 and name not in linears:
            return f"what {name} reads is not known"
    return None
