"""Reads a quantization_config: how the linears of a packed checkpoint are stored. Imports no torch.

Ours, and those of llm-compressor (compressed-tensors), GPTQModel (gptq), AutoRound (auto-round), AutoAWQ (awq), Quark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from alphaquant.errors import ModelError
from alphaquant.formats.carriers import ACTIVATIONS, AWQ, CARRIERS, GPTQ_V2, Carrier, PackedFormat
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS
from alphaquant.models.name_rules import first_match, name_or_glob, names_or_pattern


class StoredAs(NamedTuple):
    """How one linear is stored."""

    scheme: Scheme
    carrier: Carrier
    block_rows: int | None = None
    """Rows that share one scale; None: each has its own, or all have one."""


Rule = Callable[[str], StoredAs | None]
"""How the linear of a name on disk is stored; None: as plain values. Raises ModelError for what is not read."""

_CLASS = "Linear"
_DENSE_SINCE = (0, 18)
"""The compressed-tensors release that made bit streams of 3, 5, 6 and 7 bits dense."""


def storage_rule(config: Mapping[str, Any]) -> Rule:
    """The rule of a `quantization_config`. Raises ModelError for a format that is not read."""
    method = config.get("quant_method")
    reader = _READERS.get(str(method))
    if reader is None:
        raise ModelError(
            f"quantization_config has quant_method {method!r}; read are {', '.join(_READERS)}. "
            "Save the model dense, or in one of these."
        )
    try:
        return reader(config)
    except KeyError as error:
        raise ModelError(
            f"quantization_config of quant_method {method!r} lacks the key {error}; download the model again"
        ) from error


def storage_of(rule: Rule, linear: str, module: str) -> StoredAs:
    """How a linear with scales is stored. `module` is its name in transformers, which a config may use.

    Raises ModelError when the rule says that it is stored as plain values.
    """
    found = rule(linear) or rule(module)
    if found is None:
        raise ModelError(
            f"the checkpoint has scales of {linear}, but its quantization_config ignores it, or names it in no group. "
            "Mend the config, or download the model again"
        )
    return found


def activation_rule(config: Mapping[str, Any]) -> Callable[[str], str | None]:
    """The rule of compressed-tensors' config: the format that a consumer is asked to round a linear's input to.

    The rule raises ModelError for one that is not simulated: only scales that are found as it runs are, one per
    token or mx group.
    """
    group_of = _groups(config)

    def rule(name: str) -> str | None:
        inputs = (group_of(name) or {}).get("input_activations")
        return _activation(name, inputs) if inputs else None

    return rule


def _activation(name: str, inputs: Mapping[str, Any]) -> str:
    bits, kind, strategy = inputs["num_bits"], inputs["type"], inputs["strategy"]
    mx = strategy == "group" and inputs.get("group_size") == 32 and kind == "float"
    found = f"mxfp{bits}" if mx else {"int": f"int{bits}", "float": f"fp{bits}"}.get(kind, kind)
    known = found in ACTIVATIONS and (mx or strategy == "token") and inputs.get("symmetric", True)
    if inputs.get("dynamic") is True and known:
        return found
    raise ModelError(
        f"{name} asks for inputs as {kind}{bits} with {strategy} scales "
        f"({'found as it runs' if inputs.get('dynamic') else 'fixed'}), which is not simulated; simulated are "
        f"{', '.join(ACTIVATIONS)} with a scale per token or mx group"
    )


def _compressed_tensors(config: Mapping[str, Any]) -> Rule:
    group_of = _groups(config)

    def rule(name: str) -> StoredAs | None:
        group = group_of(name)
        return None if group is None else _of_group(name, group, config)

    return rule


def _groups(config: Mapping[str, Any]) -> Callable[[str], Mapping[str, Any] | None]:
    """`ignore` goes first, then exact names, patterns and the class; the first that matches counts."""
    entries = [
        (target, group)
        for group in config["config_groups"].values()
        if group.get("weights")
        for target in group["targets"]
    ]
    exact = {target: group for target, group in entries if not target.startswith("re:")}
    patterns = [(re.compile(t.removeprefix("re:")), g) for t, g in entries if t.startswith("re:")]
    ignored = [str(target) for target in config.get("ignore") or ()]
    kept = {target for target in ignored if not target.startswith("re:")}
    kept_patterns = [re.compile(t.removeprefix("re:")) for t in ignored if t.startswith("re:")]

    def rule(name: str) -> Mapping[str, Any] | None:
        if name in kept or any(pattern.match(name) for pattern in kept_patterns):
            return None
        group: Mapping[str, Any] | None = exact.get(name)
        if group is None:
            found = (group for pattern, group in patterns if pattern.match(name))
            group = next(found, exact.get(_CLASS))
        return group

    return rule


def _of_group(name: str, group: Mapping[str, Any], config: Mapping[str, Any]) -> StoredAs:
    weights = group["weights"]
    bits, integer = weights["num_bits"], weights["type"] == "int"
    strategy, size = str(weights["strategy"]), weights.get("group_size")
    stored = str(group.get("format") or config["format"])
    number = f"int{bits}" if integer else _FLOATS.get(stored)
    carrier = _carrier("compressed-tensors", stored)
    blocks = weights.get("block_structure") or (None, None)
    if number not in FORMATS or strategy not in _STRATEGIES or (strategy == "block") != any(blocks):
        raise ModelError(
            f"{name} is stored as {stored} with {strategy} scales of {bits} bits, which is not read"
        )
    version = tuple(int(part) for part in re.findall(r"\d+", str(config.get("version") or ""))[:2])
    if carrier.layout == "words" and 32 % bits and version and version < _DENSE_SINCE:
        raise ModelError(
            f"{name} has {bits} bits, packed by compressed-tensors {config['version']}: before 0.18 they were padded "
            "to whole words, which is not read. Save the model again with a newer llm-compressor"
        )
    free = integer or number == "fp8"
    width = {"group": size, "block": blocks[1]}.get(strategy) if free else None
    symmetric = bool(weights.get("symmetric", True))
    return StoredAs(Scheme(number, width, symmetric), carrier, blocks[0])


_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_FLOATS = {
    "naive-quantized": "fp8",
    "float-quantized": "fp8",
    "mxfp4-pack-quantized": "mxfp4",
    "mxfp6-pack-quantized": "mxfp6",
    "mxfp8-quantized": "mxfp8",
    "nvfp4-pack-quantized": "nvfp4",
}


def _gptq(config: Mapping[str, Any]) -> Rule:
    """The base, and what the first matching row of `dynamic` changes; a row with a minus keeps linears."""
    base = {key: config[key] for key in ("bits", "group_size")}
    form = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    carrier = _GPTQ_FORMS.get(form)
    if carrier is None:
        raise ModelError(
            f"GPTQ checkpoint_format {form!r} is not read; read are {', '.join(_GPTQ_FORMS)}. "
            "Save the model in one of these with GPTQModel"
        )
    row_of = first_match(
        (key, None if p.startswith("-:") else row)
        for p, row in (config.get("dynamic") or {}).items()
        for key in names_or_pattern(p.removeprefix("+:").removeprefix("-:"))
    )

    def rule(name: str) -> StoredAs | None:
        changes: Mapping[str, Any] | None = row_of(name, {})
        return None if changes is None else _integers(name, base | dict(changes), carrier)

    return rule


_GPTQ_FORMS = {
    "gptq": next(row for row in CARRIERS if row.name == "gptq"),
    "gptq_v2": GPTQ_V2,
}


def _awq(config: Mapping[str, Any]) -> Rule:
    """AutoAWQ: one scheme for all; what `modules_to_not_convert` names is stored plain."""
    if (form := str(config.get("version", "gemm")).lower()) != "gemm":
        raise ModelError(f"AWQ version {form!r} is not read; save the model as version gemm")
    settings = {"bits": config["bits"], "group_size": config["group_size"]}
    kept = tuple(config.get("modules_to_not_convert") or ())
    return lambda name: (
        None if any(part in name for part in kept) else _integers(name, settings, AWQ)
    )


def _auto_round(config: Mapping[str, Any]) -> Rule:
    """The base, and what `extra_config` changes for a name or a regular expression."""
    packing = str(config.get("packing_format", "auto_round:auto_gptq"))
    carrier = _AUTO_ROUND.get(packing)
    if carrier is None or config.get("data_type", "int") != "int":
        raise ModelError(
            f"AutoRound's packing_format {packing!r} of {config.get('data_type')!r} is not read; read are integers as "
            f"{', '.join(_AUTO_ROUND)}. Export the model with format='llm_compressor' instead"
        )
    base = {"bits": config["bits"], "group_size": config["group_size"], "data_type": "int"}
    extra: Mapping[str, Mapping[str, Any]] = config.get("extra_config") or {}
    patterns = [(re.compile(pattern), changes) for pattern, changes in extra.items()]

    def rule(name: str) -> StoredAs | None:
        found = (changes for pattern, changes in patterns if pattern.search(name))
        settings = base | dict(extra.get(name) or next(found, {}))
        return None if settings["bits"] >= 16 else _integers(name, settings, carrier)

    return rule


_AUTO_ROUND = {
    "auto_round:auto_gptq": _GPTQ_FORMS["gptq"],
    "auto_round:gptq": _GPTQ_FORMS["gptq"],
    "auto_round:gptqmodel": GPTQ_V2,
    "auto_round": GPTQ_V2,
    "auto_round:auto_awq": AWQ,
    "auto_round:awq": AWQ,
}


def _integers(name: str, settings: Mapping[str, Any], carrier: Carrier) -> StoredAs:
    """A linear of a format that stores zero points whether or not they are all the middle of the grid."""
    number, kind = f"int{settings['bits']}", settings.get("data_type", "int")
    if number not in carrier.formats or kind != "int":
        raise ModelError(
            f"{name} is stored as {kind}{settings['bits']} in {carrier.name}, which is not read; "
            f"read are {', '.join(carrier.formats)}"
        )
    return StoredAs(Scheme(number, settings["group_size"]), carrier)


def _quark(config: Mapping[str, Any]) -> Rule:
    layers: Mapping[str, Any] = config["layer_quant_config"]
    layer_of = first_match((name_or_glob(glob), layer) for glob, layer in layers.items())
    carrier = _carrier("quark", "quark")

    def rule(name: str) -> StoredAs:
        layer = layer_of(name, config["global_quant_config"])
        number = _QUARK_FLOATS.get(layer["weight"]["dtype"])
        if number is None:
            raise ModelError(f"{name} is stored as {layer['weight']['dtype']}, which is not read")
        return StoredAs(Scheme(number), carrier)

    return rule


_QUARK_FLOATS = {"fp4": "mxfp4", "fp6_e2m3": "mxfp6", "fp6_e3m2": "mxfp6_e3m2"}
_READERS: dict[str, Callable[[Mapping[str, Any]], Rule]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "awq": _awq,
    "quark": _quark,
}
METHODS = tuple(_READERS)
"""Every `quant_method` that is read."""


def _carrier(export: PackedFormat, name: str) -> Carrier:
    for row in CARRIERS:
        if (row.export, row.name) == (export, name):
            return row
    known = ", ".join(row.name for row in CARRIERS if row.export == export)
    raise ModelError(f"{export} format {name!r} is not read; read are {known}")
