"""A row for decoders that have none: linears by the names and shapes of what lies on disk.

Chosen only when asked for (`model.architecture: generic`), because names are a guess about what a linear does.
What nobody can tell is left at its safest: linears share an input only as q/k/v or gate/up of one module, routers
are kept, and the model is never rotated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from alphaquant.errors import ModelError
from alphaquant.models.architecture import Architecture
from alphaquant.models.linear import LinearSpec, Role

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("q_proj", "query", "q", "wq"), "q"),
    **dict.fromkeys(("k_proj", "key", "k", "wk"), "k"),
    **dict.fromkeys(("v_proj", "value", "v", "wv"), "v"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "qkv", "Wqkv", "W_pack", "c_attn"), "qkv"),
    **dict.fromkeys(("o_proj", "wo"), "o"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "fc1", "c_fc", "fc_in", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("gate_up_proj",), "gate_up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"), "down"),
}
"""By the last part of a name; what is not here is `other`."""
_OUTPUTS = ("dense", "c_proj", "out_proj", "output_proj")
"""Names for the output of attention and of the MLP alike."""
_SHARED: dict[Role, str] = {
    **dict.fromkeys(("q", "k", "v", "qkv"), "qkv"),
    **dict.fromkeys(("gate", "up", "gate_up"), "gate_up"),
}
"""Roles that read one input when they lie in one module."""
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_NO_LINEAR = re.compile(r"norm|embed|ln_|rotary|conv")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.")


@dataclass(frozen=True)
class GenericArchitecture(Architecture):
    """A row without names; `fitted` finds those of one model."""

    kind: ClassVar[Literal["auto", "generic"]] = "generic"
    unrotatable: str | None = (
        "it has a generic row (model.architecture: generic), which does not know its norms"
    )

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """The row of a model with these tensors. Raises ModelError when its final norm cannot be told."""
        inside = f"{self.blocks}."
        vectors = [
            name.removesuffix(".weight")
            for name, shape in shapes.items()
            if name.startswith("model.") and not name.startswith(inside)
            if name.endswith(".weight") and len(shape) == 1
        ]
        final = self.final_norm
        if vectors and final not in vectors:
            if len(vectors) > 1:
                raise ModelError(
                    f"a generic row needs one final norm behind {self.blocks}, found "
                    f"{', '.join(sorted(vectors))}. Add a row in alphaquant/models/rows.py."
                )
            final = vectors[0]
        return replace(self, final_norm=final, tied_by_default="lm_head.weight" not in shapes)

    def _require_ends(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        if f"{self.final_norm}.weight" in shapes:
            super()._require_ends(shapes, tied)
        else:  # a norm without weights
            super()._require_ends({**shapes, f"{self.final_norm}.weight": (0,)}, tied)

    def _block_linears(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], block: int
    ) -> list[LinearSpec]:
        root = f"{self.blocks}.{block}."
        specs = [
            _spec(name.removesuffix(".weight"), shape, block)
            for name, shape in shapes.items()
            if name.startswith(root) and name.endswith(".weight") and len(shape) == 2
            if not _NO_LINEAR.search(name.removeprefix(root).lower())
        ]
        if not specs:
            raise ModelError(
                f"the checkpoint has no linear under {root}* ([out, in] tensors that end in .weight); a generic "
                f"row needs decoder blocks under {self.blocks}. Add a row in alphaquant/models/rows.py."
            )
        return sorted(specs, key=_place)


def _spec(name: str, shape: tuple[int, ...], block: int) -> LinearSpec:
    parent = name.rpartition(".")[0]
    role = _role(name)
    expert = _EXPERT.match(name)
    reads = f"{parent}.{_SHARED[role]}" if role in _SHARED else name
    return LinearSpec(
        name,
        role,
        block,
        int(expert[2]) if expert else None,
        shape[0],
        shape[1],
        f"{reads}.in",
        expert[1] if expert else reads,
    )


def _role(name: str) -> Role:
    *parents, leaf = name.split(".")
    if not _EXPERT.match(name) and _ROUTERS.intersection((leaf, *parents)):
        return "router"
    if leaf in _OUTPUTS:
        return "o" if any("att" in part for part in parents) else "down"
    return _ROLES.get(leaf, "other")


def _place(spec: LinearSpec) -> tuple[int, int, str]:
    """Attention, MLP, routers, then experts in order: as other rows have them, whatever the files' order."""
    order: tuple[Role, ...] = (
        "q", "k", "v", "qkv", "o", "other", "router", "gate", "up", "gate_up", "down"
    )  # fmt: skip
    return (-1 if spec.expert is None else spec.expert, order.index(spec.role), spec.name)
