"""Activation formats, simulated: a linear's input is rounded on the fly before it multiplies.

Every token is scaled by itself (dynamic); MX formats scale groups of 32 features. Scales are fp32 and never stored, so
they are rounded to no type, as compressed-tensors has it in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from alphaquant.errors import ModelError
from alphaquant.formats.grid import fake_quantize
from alphaquant.formats.scales import rule_scales, split_groups
from alphaquant.formats.scheme import Scheme
from alphaquant.models.architecture import Architecture
from alphaquant.models.experts import unfuse
from alphaquant.models.packed import PackedCheckpoint
from alphaquant.models.resolve import read_config


@contextlib.contextmanager
def simulated_activations(
    model: nn.Module, architecture: Architecture, activations: Mapping[str, str]
) -> Iterator[None]:
    """While open, the inputs of the linears named in `activations` pass through their format.

    Experts are unfused first (their weights stay shared), since each may have its own format; the model
    stays unfused afterwards and computes the same.
    """
    if not activations:
        yield
        return
    unfuse(model, share=True)
    modules = {name: model.get_submodule(architecture.module_name(name)) for name in activations}
    with rounded_inputs(modules, activations):
        yield


@contextlib.contextmanager
def rounded_inputs(
    modules: Mapping[str, nn.Module], activations: Mapping[str, str]
) -> Iterator[None]:
    """While open, each module's input passes through the format that `activations` has for its linear, its key."""
    with contextlib.ExitStack() as hooks:
        for linear, module in modules.items():
            hooks.callback(round_inputs(module, linear, activations[linear]).remove)
        yield


def round_inputs(module: nn.Module, linear: str, activation: str) -> RemovableHandle:
    """Let a module's input pass through a format until the handle is removed; `linear` names it in errors."""
    scheme = Scheme.parse(activation, group_size=None)
    return module.register_forward_pre_hook(_round_input(linear, scheme))


def asked_activations(
    folder: Path,
    trust_remote_code: bool = False,
    architecture: Literal["auto", "generic"] = "auto",
) -> dict[str, str]:
    """The activation formats, by linear name, that a checkpoint asks its consumer for; only compressed-tensors asks.

    Raises ModelError for one that cannot be simulated, such as scales that were fixed by calibration.
    """
    settings = read_config(folder).get("quantization_config") or {}
    if settings.get("quant_method") != "compressed-tensors":
        return {}
    return PackedCheckpoint(folder, trust_remote_code, architecture).activations


def round_tokens(x: Tensor, scheme: Scheme) -> Tensor:
    """Values `[..., features]` as a consumer sees them that quantizes each token by itself; fp32."""
    fmt, features = scheme.number_format, x.shape[-1]
    groups = split_groups(x.detach().float(), scheme.group_width(features))
    if fmt.kind in ("int", "float") and scheme.symmetric:
        top = groups.abs().amax(-1, keepdim=True)
        span = fmt.max_value + (0.5 if fmt.is_integer else 0.0)
        scale, zero = torch.where(top > 0, top / span, 1.0), None
    else:
        found = rule_scales(groups, scheme)
        scale = found.effective.unsqueeze(-1)
        zero = None if found.zero is None else found.zero.unsqueeze(-1)
    return fake_quantize(groups, scale, zero, fmt).flatten(-2)[..., :features]


def _round_input(
    linear: str, scheme: Scheme
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        if not x.numel():
            return args
        if not bool(torch.isfinite(x).all()):
            raise ModelError(
                f"the input of {linear} holds NaN or infinite values, so its activations cannot be simulated: "
                "the compressed model overflows. Give the linears before it more bits."
            )
        # one matrix of tokens: nvfp4 scales a matrix as a whole
        tokens = x.reshape(-1, x.shape[-1])
        return (round_tokens(tokens, scheme).to(x.dtype).view_as(x), *args[1:])

    return hook
