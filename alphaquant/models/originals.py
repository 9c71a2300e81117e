"""Packed checkpoints that may be what others are compared with: they are decoded when they are read. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alphaquant.models.block_scaled import is_block_scaled


@dataclass(frozen=True, slots=True)
class Original:
    """A kind of published checkpoint."""

    words: str
    """For who has another kind."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a quantization_config of its method means this kind."""


ORIGINALS = {
    "mxfp4": Original("experts in MXFP4", lambda settings: True),
    "fp8": Original(
        "FP8 (fmt e4m3) with weight_block_size and activation_scheme dynamic", is_block_scaled
    ),
}
"""By quant_method."""
