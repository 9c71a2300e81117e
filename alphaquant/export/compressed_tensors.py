"""The quantization_config of a compressed-tensors checkpoint, as transformers, vLLM and SGLang read it.

One config group per scheme, with disjoint targets under the names on disk, its own `format`, and everything that is
not quantized in `ignore`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphaquant.errors import FormatError
from alphaquant.export.targets import targets_by_kind
from alphaquant.formats.carriers import Carrier, carrier_of
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec

# the first release with the layouts that are written: packed bit streams of 3 and 6 bits, mxfp6
VERSION = "0.20.0"


def quantization_config(
    specs: Sequence[LinearSpec],
    schemes: Mapping[str, Scheme],
    activations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The config of a model whose linears `specs` are stored by `schemes`; linears that it leaves out are kept.

    `activations` (format by linear) are quantized by the consumer, per token or mx block. Raises FormatError for a
    scheme that has no carrier.
    """
    kinds = {
        spec.name: None
        if (scheme := schemes.get(spec.name)) is None or scheme.format == "bf16"
        else (scheme, (activations or {}).get(spec.name))
        for spec in specs
    }
    groups: dict[str, Any] = {}
    ignore: list[str] = []
    for found in targets_by_kind(specs, kinds):
        targets = [*found.names, *(f"re:{experts.pattern}" for experts in found.experts)]
        if found.kind is None:
            ignore = targets
        else:
            scheme, activation = found.kind
            label = str(scheme) if activation is None else f"{scheme}-a_{activation}"
            groups[label] = config_group(scheme, activation, targets)
    if "lm_head" not in kinds:
        ignore.append("lm_head")  # tied: no linear of its own, but a module
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def config_group(scheme: Scheme, activation: str | None, targets: Sequence[str]) -> dict[str, Any]:
    """One entry of `config_groups`. Raises FormatError when the scheme has no carrier."""
    carrier = carrier_of(scheme, "compressed-tensors", activation)
    if not isinstance(carrier, Carrier):
        raise FormatError(carrier)
    return {
        "targets": list(targets),
        "format": carrier.name,
        "weights": _arguments(scheme),
        "input_activations": None if activation is None else _per_token(activation),
        "output_activations": None,
    }


def kv_cache_scheme(form: str) -> dict[str, Any]:
    """`QuantizationArgs` of keys and values with one fixed scale per layer, as consumers want it."""
    arguments = _arguments(Scheme.parse(form, group_size=None))
    return arguments | {"strategy": "tensor", "dynamic": False}


def _arguments(scheme: Scheme) -> dict[str, Any]:
    """`QuantizationArgs` of a weight."""
    fmt = scheme.number_format
    strategy = "channel" if scheme.group_size is None else "group"
    arguments: dict[str, Any] = {
        "num_bits": fmt.bits,
        "type": "int" if fmt.is_integer else "float",
        "symmetric": scheme.symmetric,
        "strategy": "tensor_group" if fmt.kind == "nv" else strategy,
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    if fmt.kind == "mx":
        arguments["scale_dtype"] = "torch.uint8"
    if fmt.kind == "nv":
        arguments["scale_dtype"] = "torch.float8_e4m3fn"
    return arguments


def _per_token(activation: str) -> dict[str, Any]:
    """`QuantizationArgs` of an input whose scales the consumer computes as it runs."""
    scheme = Scheme.parse(activation, group_size=None)
    strategy = "token" if scheme.group_size is None else "group"
    return _arguments(scheme) | {"strategy": strategy, "dynamic": True}
