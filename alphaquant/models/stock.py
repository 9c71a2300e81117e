"""What plain transformers needs to load a checkpoint exactly as it was evaluated. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from alphaquant.models.native import TAUGHT
from alphaquant.models.packed_config import storage_rule
from alphaquant.models.resolve import read_config
from alphaquant.models.tensors import tensor_index

Need = Literal["nothing", "alphaquant.hf", "alphaquant.load"]
"""nothing: from_pretrained alone. alphaquant.hf: after importing that. alphaquant.load: no from_pretrained does."""

_EXPERT = re.compile(r"(.+\.experts\.\d+\.\w+)\.weight(_packed)?")
_DECODED = ("pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized")
_SCALED = ("naive-quantized", "float-quantized")


def transformers_needs(folder: Path) -> Need:
    """What the checkpoint in `folder` needs. Raises ModelError for one that is not read at all.

    transformers decodes all experts by one scheme: they must have the same one, of a kind that it decodes right.
    """
    config = read_config(folder)
    settings = config.get("quantization_config")
    if not settings:
        return "alphaquant.hf" if config.get("model_type") in TAUGHT else "nothing"
    if settings.get("quant_method") != "compressed-tensors":
        return "alphaquant.load"
    names = tensor_index(folder)
    rule = storage_rule(settings)
    packed = {n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")}
    found = {linear: rule(linear) for linear in packed}
    if config.get("model_type") in TAUGHT or any(
        stored and not stored.scheme.symmetric for stored in found.values()
    ):
        return "alphaquant.hf"
    kinds = {found.get(match[1]) for name in names if (match := _EXPERT.fullmatch(name))}
    if not kinds:
        return "nothing"
    kind = kinds.pop()
    if kinds or kind is None:
        return "alphaquant.hf"
    per_row = kind.scheme.group_size is None
    right = kind.carrier.name in _DECODED or (kind.carrier.name in _SCALED and per_row)
    return "nothing" if right else "alphaquant.hf"
