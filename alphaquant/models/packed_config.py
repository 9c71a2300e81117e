"""Reads a quantization_config: how the linears of a packed checkpoint are stored. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from alphaquant.errors import ModelError
from alphaquant.formats.carriers import CARRIERS, Carrier, PackedFormat
from alphaquant.formats.scheme import Scheme


class StoredAs(NamedTuple):
    """How one linear is stored."""

    scheme: Scheme
    carrier: Carrier


Rule = Callable[[str], StoredAs]
"""How the linear of a name on disk is stored. Raises ModelError for one that no entry of the config means."""

_CLASS = "Linear"


def storage_rule(config: Mapping[str, Any]) -> Rule:
    """The rule of a `quantization_config`. Raises ModelError for a format that is not read."""
    method = config.get("quant_method")
    reader = _READERS.get(str(method))
    if reader is None:
        raise ModelError(
            f"quantization_config has quant_method {method!r}; read are {', '.join(_READERS)}. "
            "Save the model dense, or in one of these."
        )
    return reader(config)


def _compressed_tensors(config: Mapping[str, Any]) -> Rule:
    """Exact names go before patterns, and those before the class; the first that matches counts."""
    entries = [
        (target, group) for group in config["config_groups"].values() for target in group["targets"]
    ]
    exact = {target: group for target, group in entries if not target.startswith("re:")}
    patterns = [(re.compile(t.removeprefix("re:")), g) for t, g in entries if t.startswith("re:")]

    def rule(name: str) -> StoredAs:
        group = exact.get(name)
        if group is None:
            found = (group for pattern, group in patterns if pattern.match(name))
            group = next(found, exact.get(_CLASS))
        if group is None:
            raise ModelError(f"no config group of quantization_config has {name} as its target")
        return _of_group(name, group, config)

    return rule


def _of_group(name: str, group: Mapping[str, Any], config: Mapping[str, Any]) -> StoredAs:
    weights = group["weights"]
    bits, integer = weights["num_bits"], weights["type"] == "int"
    strategy, size = weights["strategy"], weights.get("group_size")
    stored = group.get("format") or config["format"]
    number = f"int{bits}" if integer else _FLOATS.get(stored)
    carrier = _carrier("compressed-tensors", stored)
    if number is None or strategy not in ("group", "channel", "tensor_group"):
        raise ModelError(
            f"{name} is stored as {stored} with {strategy} scales of {bits} bits, which is not read"
        )
    free = integer or number == "fp8"
    symmetric = bool(weights.get("symmetric", True))
    return StoredAs(
        Scheme(number, size if free and strategy == "group" else None, symmetric), carrier
    )


_FLOATS = {
    "naive-quantized": "fp8",
    "float-quantized": "fp8",
    "mxfp4-pack-quantized": "mxfp4",
    "mxfp6-pack-quantized": "mxfp6",
    "mxfp8-quantized": "mxfp8",
    "nvfp4-pack-quantized": "nvfp4",
}


def _gptq(config: Mapping[str, Any]) -> Rule:
    """The base, and what the first matching row of `dynamic` changes."""
    base = {key: config[key] for key in ("bits", "group_size")}
    rows: list[tuple[re.Pattern[str], dict[str, int]]] = [
        (re.compile(pattern.removeprefix("+:")), changes)
        for pattern, changes in (config.get("dynamic") or {}).items()
        if not pattern.startswith("-:")
    ]
    carrier = _carrier("gptq", "gptq")

    def rule(name: str) -> StoredAs:
        settings = base | next((found for pattern, found in rows if pattern.match(name)), {})
        return StoredAs(Scheme(f"int{settings['bits']}", settings["group_size"]), carrier)

    return rule


def _quark(config: Mapping[str, Any]) -> Rule:
    rows: Sequence[tuple[str, Any]] = list(config["layer_quant_config"].items())
    carrier = _carrier("quark", "quark")

    def rule(name: str) -> StoredAs:
        found = (layer for glob, layer in rows if glob == name or fnmatch.fnmatch(name, glob))
        layer = next(found, config["global_quant_config"])
        number = _QUARK_FLOATS.get(layer["weight"]["dtype"])
        if number is None:
            raise ModelError(f"{name} is stored as {layer['weight']['dtype']}, which is not read")
        return StoredAs(Scheme(number), carrier)

    return rule


_QUARK_FLOATS = {"fp4": "mxfp4", "fp6_e2m3": "mxfp6", "fp6_e3m2": "mxfp6_e3m2"}
_READERS: dict[str, Callable[[Mapping[str, Any]], Rule]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "quark": _quark,
}


def _carrier(export: PackedFormat, name: str) -> Carrier:
    for row in CARRIERS:
        if (row.export, row.name) == (export, name):
            return row
    known = ", ".join(row.name for row in CARRIERS if row.export == export)
    raise ModelError(f"{export} format {name!r} is not read; read are {known}")
