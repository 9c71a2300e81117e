"""Groups of linears that must share one format, the menu they choose from, and what a choice stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec

Granularity = Literal["linear", "expert", "fused"]
BF16 = Scheme.parse("bf16")
MIDDLE, LOWEST = Scheme.parse("mxfp8"), Scheme.parse("mxfp4")
"""What policy ratio gives besides."""


@dataclass(frozen=True, slots=True)
class Group:
    """Linears that get one format."""

    key: str
    specs: tuple[LinearSpec, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(spec.size for spec in self.specs)


def group_linears(specs: Sequence[LinearSpec], granularity: Granularity) -> list[Group]:
    """Groups in the order of their first linear.

    linear: each alone. expert: the projections of one expert, other linears alone. fused: what a
    serving kernel runs as one (q, k and v; gate and up; all experts of a block).
    """
    members: dict[str, list[LinearSpec]] = {}
    for spec in specs:
        members.setdefault(_key(spec, granularity), []).append(spec)
    return [Group(key, tuple(group)) for key, group in members.items()]


def menu(config: AllocationConfig, quantization: QuantizationConfig) -> list[Scheme]:
    """The schemes that `allocation.formats` names, each once."""
    return list(
        dict.fromkeys(
            Scheme.parse(name, group_size=quantization.group_size, symmetric=quantization.symmetric)
            for name in config.formats
        )
    )


def stored_bits(spec: LinearSpec, scheme: Scheme) -> int:
    """Exact number of bits that a linear takes, scales and zeros included."""
    return round(scheme.bits_per_weight(spec.cols, rows=spec.rows) * spec.size)


def group_costs(groups: Sequence[Group], options: Sequence[Scheme]) -> npt.NDArray[np.int64]:
    """Stored bits of every group under every option `[groups, options]`."""
    return np.array(
        [[sum(stored_bits(s, o) for s in group.specs) for o in options] for group in groups],
        dtype=np.int64,
    ).reshape(len(groups), len(options))


def _key(spec: LinearSpec, granularity: Granularity) -> str:
    if granularity == "fused":
        return spec.fused_key
    if granularity == "expert" and spec.expert is not None:
        return f"block {spec.block} expert {spec.expert}"
    return spec.name
