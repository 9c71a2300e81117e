"""What plain transformers needs to load a checkpoint exactly as it was evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alphaquant.models.packed import PackedCheckpoint
from alphaquant.models.resolve import read_config

Need = Literal["nothing", "alphaquant.hf", "alphaquant.load"]
"""nothing: from_pretrained alone. alphaquant.hf: after importing that. alphaquant.load: no from_pretrained does."""

_DECODED = ("pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized")
_SCALED = ("naive-quantized", "float-quantized")


def transformers_needs(folder: Path, trust_remote_code: bool = False) -> Need:
    """What the checkpoint in `folder` needs. Raises ModelError for one that is not read at all.

    All experts are decoded by one scheme: they must have the same one, of a kind that transformers decodes right.
    """
    settings = read_config(folder).get("quantization_config")
    if not settings:
        return "nothing"
    if settings.get("quant_method") != "compressed-tensors":
        return "alphaquant.load"
    checkpoint = PackedCheckpoint(folder, trust_remote_code)
    stored = checkpoint.stored_as
    if any(not one.scheme.symmetric for one in stored.values()):
        return "alphaquant.hf"
    kinds = {stored.get(spec.name) for spec in checkpoint.specs if spec.expert is not None}
    if not kinds:
        return "nothing"
    kind = kinds.pop()
    if kinds or kind is None:
        return "alphaquant.hf"
    per_row = kind.scheme.group_size is None
    right = kind.carrier.name in _DECODED or (kind.carrier.name in _SCALED and per_row)
    return "nothing" if right else "alphaquant.hf"
