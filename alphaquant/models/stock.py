"""What plain transformers needs to load a checkpoint exactly as it was evaluated. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from alphaquant.models.native import TAUGHT
from alphaquant.models.packed_config import StoredAs, storage_rule
from alphaquant.models.resolve import read_config
from alphaquant.models.tensors import tensor_index

Need = Literal["nothing", "alphaquant.hf", "alphaquant.load"]
"""nothing: from_pretrained alone. alphaquant.hf: after importing that. alphaquant.load: no from_pretrained does."""

WITHOUT_HF = "without it transformers refuses this checkpoint, or decodes it wrongly"

_EXPERT = re.compile(r"(.+\.experts\.\d+\.\w+)\.weight(_packed)?")
_DECODED = ("pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized")
_SCALED = ("naive-quantized", "float-quantized")


def transformers_needs(folder: Path) -> Need:
    """What the checkpoint in `folder` needs. Raises ModelError for one that is not read at all."""
    config = read_config(folder)
    model_type, settings = str(config.get("model_type")), config.get("quantization_config")
    if not settings:
        return need_of(model_type, ())
    if settings.get("quant_method") != "compressed-tensors":
        return "alphaquant.load"
    names = tensor_index(folder)
    rule = storage_rule(settings)
    packed = {n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")}
    experts = {match[1] for name in names if (match := _EXPERT.fullmatch(name))}
    return need_of(
        model_type,
        [(name in experts, rule(name) if name in packed else None) for name in packed | experts],
    )


def need_of(model_type: str, linears: Iterable[tuple[bool, StoredAs | None]]) -> Need:
    """What a compressed-tensors checkpoint needs, from each linear's being a routed expert's and how it is stored.

    None stands for plain values. transformers has no room for zero points while it loads, and decodes all experts by one
    scheme: they must have the same one, of a kind that it decodes right.
    """
    found = set(linears)
    stored = [one for _, one in found if one is not None]
    if model_type in TAUGHT or not all(one.scheme.symmetric for one in stored):
        return "alphaquant.hf"
    kinds = {one for expert, one in found if expert}
    if not stored or not kinds:
        return "nothing"
    kind = kinds.pop()
    if kinds or kind is None:
        return "alphaquant.hf"
    per_row = kind.scheme.group_size is None
    right = kind.carrier.name in _DECODED or (kind.carrier.name in _SCALED and per_row)
    return "nothing" if right else "alphaquant.hf"
