"""LinearSpec: the name, place and shape of one weight matrix, without the weight itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal[
    "q",
    "k",
    "v",
    "qkv",
    "q_a",
    "kv_a",
    "q_b",
    "kv_b",
    "o",
    "gate",
    "up",
    "gate_up",
    "down",
    "router",
    "other",
    "lm_head",
]
"""What a linear does. `qkv` and `gate_up` are one tensor on disk. Of latent attention, q_a and kv_a make the latents from
the block's input, q_b and kv_b read them. `other` is what a generic row cannot tell."""
ROLES: tuple[Role, ...] = get_args(Role)
"""In the order in which a block uses them."""
ATTENDING_ROLES: frozenset[Role] = frozenset({"q", "k", "v", "qkv", "q_a", "kv_a", "q_b", "kv_b"})
"""What attention runs before it hands anything on."""
ATTENTION_ROLES: frozenset[Role] = ATTENDING_ROLES | {"o"}

HEAD = "lm_head"
"""Name of the output projection."""


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One logical weight `[rows, cols]` = `[out, in]`; an expert's slice counts as one linear.

    `name` is the weight's name in the checkpoint on disk without `.weight`, and joins every table.
    """

    name: str
    role: Role
    block: int | None
    """Decoder block, or None for lm_head."""
    expert: int | None
    """Index of a routed expert, or None."""
    rows: int
    cols: int
    input_key: str
    """Linears with equal keys read the same input and share one Hessian."""
    fused_key: str
    """Linears with equal keys are one kernel when served: qkv, gate_up, all experts of a block."""

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.rows * self.cols


def first_readers(specs: Iterable[LinearSpec]) -> dict[str, LinearSpec]:
    """Of the linears that read one input, the one that a block runs first, by input key."""
    found: dict[str, LinearSpec] = {}
    for spec in specs:
        found.setdefault(spec.input_key, spec)
    return found
