"""How large a checkpoint will be, from a plan and the original's headers alone. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alphaquant.config import ExportConfig
from alphaquant.export.consumers import candidates
from alphaquant.formats.carriers import Carrier, carrier_of, stored_tensors
from alphaquant.models.tensors import TensorEntry
from alphaquant.plan import QuantPlan

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Of one element by its safetensors dtype; those of one byte are left out."""
_DEFAULT = "BF16"


@dataclass(frozen=True, slots=True)
class Size:
    """What a checkpoint takes on disk, headers of its files apart."""

    bytes: int
    bits_per_weight: float
    """Over the plan's linears, with everything that is stored of them."""


def checkpoint_size(
    plan: QuantPlan, entries: Mapping[str, TensorEntry], export: ExportConfig
) -> Size:
    """The size of a plan's checkpoint. `entries` are the original's tensors by name.

    Linears that the export format cannot hold, and those of a dense checkpoint, count as they are in the original.
    """
    whole = sum(_bytes(entry.dtype, entry.shape) for entry in entries.values())
    linears = 0
    for linear in candidates(plan, export):
        rows, cols = linear.spec.rows, linear.spec.cols
        entry = entries.get(f"{linear.spec.name}.weight")  # none for a tied head, which is added
        dtype = entry.dtype if entry else _DEFAULT
        before = _bytes(dtype, (rows, cols)) if entry else 0
        after = _bytes(dtype, (rows, cols))
        if export.format != "dense" and not linear.kept:
            carrier = carrier_of(linear.scheme, export.format, linear.activation)
            if isinstance(carrier, Carrier):
                tensors = stored_tensors(carrier, linear.scheme, rows, cols, dtype)
                after = sum(_bytes(stored, shape) for stored, shape in tensors.values())
        linears += after
        whole += after - before
    return Size(whole, 8 * linears / sum(spec.size for spec in plan.specs))


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES.get(dtype, 1)
