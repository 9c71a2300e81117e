"""The quantize_config of a GPTQ v1 checkpoint, as GPTQModel, vLLM and SGLang read it.

The most common bits and group size are the base; other linears are rows of `dynamic`. GPTQModel matches those against
the names of linears, vLLM against those of its fused kernels, so every pattern matches both. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from alphaquant.export.folder import PROGRAM
from alphaquant.export.targets import targets_by_kind
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec

_KERNELS = {"qkv": "qkv_proj", "qkv_a": "fused_qkv_a_proj", "gate_up": "gate_up_proj"}
"""What vLLM calls the module that it makes of linears with one `fused_key`, by that key's last part."""


def quantization_config(
    specs: Sequence[LinearSpec], schemes: Mapping[str, Scheme]
) -> dict[str, Any]:
    """The config of a model whose linears `specs` are stored by `schemes`; linears that it leaves out are kept.

    It is quantize_config.json as well as `quantization_config` of config.json.
    """
    kinds: dict[str, Scheme | None] = {
        spec.name: None
        if (scheme := schemes.get(spec.name)) is None or scheme.format == "bf16"
        else scheme
        for spec in specs
        if spec.role != "lm_head" or spec.name in schemes
    }
    used = [scheme for scheme in kinds.values() if scheme is not None]
    base = max(sorted(set(used), key=str), key=used.count)
    dynamic: dict[str, dict[str, int]] = {}
    named = [spec for spec in specs if spec.name in kinds]
    for found in targets_by_kind(named, kinds):
        if found.kind == base:
            continue
        sign, settings = ("-:", {}) if found.kind is None else ("+:", _settings(found.kind))
        experts = (one.pattern_with_folder for one in found.experts)
        dynamic |= {
            sign + pattern: settings for pattern in (*_both_spellings(found.names, named), *experts)
        }
    return {
        "quant_method": "gptq",
        "format": "gptq",
        "checkpoint_format": "gptq",
        **_settings(base),
        "desc_act": False,
        "sym": True,
        "lm_head": any(s.role == "lm_head" and s.name in schemes for s in specs),
        "pack_dtype": "int32",
        "dynamic": dynamic,
        "meta": {"quantizer": [f"{PROGRAM}:{version(PROGRAM)}"]},
    }


def _settings(scheme: Scheme) -> dict[str, int]:
    return {"bits": scheme.number_format.bits, "group_size": scheme.group_size or -1}


def _both_spellings(names: Sequence[str], specs: Sequence[LinearSpec]) -> list[str]:
    """Patterns for exact names; those that are fused when served, and all here, also match the fused name."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        if spec.expert is None and spec.fused_key.rpartition(".")[2] in _KERNELS:
            groups.setdefault(spec.fused_key, []).append(spec.name)
    left, patterns = dict.fromkeys(names), []
    for key, members in groups.items():
        if len(members) > 1 and all(one in left for one in members):
            for one in members:
                del left[one]
            parent = members[0].rpartition(".")[0]
            leaves = [one.rpartition(".")[2] for one in members]
            fused = _KERNELS[key.rpartition(".")[2]]
            patterns.append(rf"^{re.escape(parent)}\.({'|'.join((*leaves, fused))})$")
    return patterns + [f"^{re.escape(name)}$" for name in left]
