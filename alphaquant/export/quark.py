"""The quantization_config of an AMD Quark checkpoint, which alone carries MXFP6 to vLLM. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphaquant.export.targets import Experts, targets_by_kind
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec

_DTYPES = {"mxfp4": "fp4", "mxfp6": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2"}


def quantization_config(
    specs: Sequence[LinearSpec], schemes: Mapping[str, Scheme]
) -> dict[str, Any]:
    """The config of a model whose linears `specs` are stored by `schemes`; linears that it leaves out are kept."""
    kinds: dict[str, str | None] = {
        spec.name: _DTYPES.get(schemes[spec.name].format) if spec.name in schemes else None
        for spec in specs
    }
    used = [kind for kind in kinds.values() if kind is not None]
    layers: dict[str, Any] = {}
    exclude: list[str] = []
    for found in targets_by_kind(specs, kinds):
        if found.kind is None:
            folders = (f"re:{experts.pattern_with_folder}" for experts in found.experts)
            exclude = [*found.names, *folders]
        else:
            globs = (glob for experts in found.experts for glob in _globs(experts))
            layers |= dict.fromkeys([*found.names, *globs], _layer(found.kind))
    if "lm_head" not in kinds:
        exclude.append("lm_head")
    return {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "global_quant_config": _layer(max(sorted(set(used)), key=used.count)),
        "layer_quant_config": layers,
        "layer_type_quant_config": {},
        "exclude": exclude,
        "export": {
            "kv_cache_group": [],
            "min_kv_scale": 0.0,
            "pack_method": "reorder",
            "weight_format": "real_quantized",
            "weight_merge_groups": None,
        },
    }


def _layer(dtype: str) -> dict[str, Any]:
    """How one linear is stored, in Quark's terms."""
    return {
        "weight": {
            "dtype": dtype,
            "qscheme": "per_group",
            "group_size": 32,
            "ch_axis": -1,
            "scale_format": "e8m0",
            "symmetric": None,
            "is_dynamic": False,
        },
        "input_tensors": None,
        "output_tensors": None,
        "bias": None,
        "target_device": None,
    }


def _globs(experts: Experts) -> list[str]:
    """A block's experts as globs, which consumers match against linears and against the folder."""
    if experts.whole:
        return [f"{experts.folder}*"]
    return [f"{experts.folder}.*.{leaf}" for leaf in experts.projections]
