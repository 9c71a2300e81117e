"""Teaches transformers mixed experts: after `import alphaquant.hf`, plain `from_pretrained` loads them exactly.

transformers decodes all experts of a compressed-tensors checkpoint by one config group. This replaces the method
that does it by one that asks for the scheme of every expert by its name on disk, and decodes it as `alphaquant.load`
does. Checkpoints with zero points, which transformers refuses, are decoded while they are loaded. Model types that
this package brings become known. `alphaquant.load` needs none of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import transformers
from torch import Tensor

from alphaquant.errors import ModelError
from alphaquant.formats.carriers import leaf_names
from alphaquant.formats.decode import unpack, weight_shape
from alphaquant.models.native import TAUGHT, teach_transformers
from alphaquant.models.packed_config import Rule, StoredAs, storage_of, storage_rule
from alphaquant.models.rows import ARCHITECTURES

SUPPORTED = ("5.23", "5.24")
"""Releases of transformers whose method is known."""

_EXPERTS = re.compile(r"(?P<projection>\w+)\.(?P<leaf>weight\w*)\$?$")
_originals: dict[tuple[Any, str], Any] = {}
_rules: WeakKeyDictionary[Any, Rule] = WeakKeyDictionary()


def install() -> None:
    """Patch transformers; a second call changes nothing. Raises ImportError for a release that is not known."""
    release = ".".join(transformers.__version__.split(".")[:2])
    if release not in SUPPORTED:
        raise ImportError(
            f"alphaquant.hf knows transformers {', '.join(SUPPORTED)}, found {transformers.__version__}. "
            "Install one of these, or load the model with alphaquant.load, which needs no patch"
        )
    from transformers.integrations.compressed_tensors import CompressedTensorsDequantize
    from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

    for model_type in TAUGHT:
        teach_transformers(model_type)
    if not _originals:
        quantizer = CompressedTensorsHfQuantizer
        _replace(CompressedTensorsDequantize, "convert", _convert)
        _replace(quantizer, "__init__", _decoding_zero_points(quantizer.__init__))


def remove() -> None:
    """Give transformers its own methods back."""
    while _originals:
        (owner, name), method = _originals.popitem()
        setattr(owner, name, method)


def _replace(owner: Any, name: str, method: Callable[..., Any]) -> None:
    _originals[owner, name] = getattr(owner, name)
    setattr(owner, name, method)


def _decoding_zero_points(original: Callable[..., None]) -> Callable[..., None]:
    """The quantizer's `__init__`; modules that stay packed while they are loaded have no room for zero points."""

    def init(self: Any, quantization_config: Any, **kwargs: Any) -> None:
        original(self, quantization_config, **kwargs)
        settings = self.compressor.quantization_config  # None: nothing but sparsity
        groups = settings.config_groups.values() if settings else ()
        if any(group.weights and not group.weights.symmetric for group in groups):
            self.quantization_config.dequantize = True

    return init


def _convert(
    self: Any,
    input_dict: dict[str, Any],
    source_patterns: list[str],
    target_patterns: list[str],
    full_layer_name: str | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """`ConversionOps.convert`: stored tensors by source pattern -> dense weights, experts stacked."""
    model: Any = kwargs["model"]
    name = str(full_layer_name)
    parameter: Tensor = model.get_parameter(name)
    rule = _rule_of(self.hf_quantizer)
    row = ARCHITECTURES.get(model.config.model_type)
    on_disk = row.disk_name if row else str
    if any(key.startswith("weight") for key in input_dict):  # one module, with dequantize=True
        leaves = {key: _first(value) for key, value in input_dict.items()}
        module = name.removesuffix(".weight")
        linear, weight = on_disk(module), leaves.get("weight")
        if weight is None or "weight_scale" in leaves:
            weight = _decoded(linear, leaves, storage_of(rule, linear, module))
        return {name: weight.to(parameter.dtype)}
    folder = name.rpartition(".")[0]  # of the fused parameter: the experts' own
    decoded: dict[str, Any] = {}
    for projection, found in _by_projection(input_dict).items():
        names = [on_disk(f"{folder}.{at}.{projection}") for at in range(len(parameter))]
        decoded[found[0]] = _stacked(names, found[1], rule, parameter)
    return decoded


def _rule_of(quantizer: Any) -> Rule:
    """How the checkpoint's linears are stored, read once for all of its parameters."""
    if quantizer not in _rules:
        settings: dict[str, Any] = quantizer.compressor.quantization_config.model_dump(mode="json")
        _rules[quantizer] = storage_rule(settings | {"quant_method": "compressed-tensors"})
    return _rules[quantizer]


def _by_projection(
    collected: Mapping[str, Sequence[Tensor]],
) -> dict[str, tuple[str, dict[str, Sequence[Tensor]]]]:
    """Per projection: the first source pattern, under which its weights go on, and its tensors by leaf."""
    found: dict[str, tuple[str, dict[str, Sequence[Tensor]]]] = {}
    for pattern, tensors in collected.items():
        match = _EXPERTS.search(pattern)
        if match is None:
            raise ModelError(f"transformers collects experts as {pattern!r}, which is not known")
        found.setdefault(match["projection"], (pattern, {}))[1][match["leaf"]] = tensors
    return found


def _stacked(
    names: Sequence[str], collected: Mapping[str, Sequence[Tensor]], rule: Rule, parameter: Tensor
) -> Tensor:
    """One projection of all experts `[experts, out, in]`, filled in place: never in memory twice."""
    weights = _weights(names, collected, rule)
    first = next(weights)
    stack = first.new_empty((len(names), *first.shape), dtype=parameter.dtype)
    stack[0] = first
    for at, weight in enumerate(weights, 1):
        stack[at] = weight
    return stack


def _weights(
    names: Sequence[str], collected: Mapping[str, Sequence[Tensor]], rule: Rule
) -> Iterator[Tensor]:
    """Experts in turn, `[out, in]` each: every one takes the next tensor of the leaves that its scheme has."""
    queues = {leaf: iter(tensors) for leaf, tensors in collected.items()}
    for name in names:
        stored = rule(name)
        wanted = ("weight",) if stored is None else leaf_names(stored.carrier, stored.scheme)
        leaves: dict[str, Tensor] = {}
        for leaf in wanted:
            tensor = next(queues.get(leaf, iter(())), None)
            if tensor is None:
                raise ModelError(f"the checkpoint has no {name}.{leaf}; it is incomplete")
            leaves[leaf] = tensor
        yield leaves["weight"] if stored is None else _decoded(name, leaves, stored)
    if left := [leaf for leaf, queue in queues.items() if next(queue, None) is not None]:
        raise ModelError(
            f"the checkpoint has more {left[0]} beside {names[0]} than its quantization_config tells"
        )


def _decoded(name: str, leaves: Mapping[str, Tensor], stored: StoredAs) -> Tensor:
    """The dense weight `[out, in]` in fp32."""
    scheme, carrier, block_rows = stored
    if carrier.layout == "words":
        rows, cols = leaves["weight_shape"].tolist()
    else:
        shapes = {leaf: tuple(tensor.shape) for leaf, tensor in leaves.items()}
        shape = weight_shape(shapes, carrier, scheme.number_format.bits)
        if shape is None:
            raise ModelError(f"the checkpoint has no codes of {name}; it is incomplete")
        rows, cols = shape
    return unpack(leaves, carrier, scheme, (rows, cols), block_rows).dequantize()


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor


install()
