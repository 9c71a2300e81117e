"""Activation formats, simulated: a linear's input is rounded on the fly before it multiplies.

Every token is scaled by itself (dynamic); MX formats scale groups of 32 features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.models.architecture import Architecture
from alphaquant.models.experts import unfuse


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
    with contextlib.ExitStack() as hooks:
        for linear, text in activations.items():
            module = model.get_submodule(architecture.module_name(linear))
            scheme = Scheme.parse(text, group_size=None)
            hooks.callback(module.register_forward_pre_hook(_round_input(scheme)).remove)
        yield


def _round_input(scheme: Scheme) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        tokens = x.reshape(-1, x.shape[-1])
        if not tokens.shape[0]:
            return args
        rounded = quantize_weight(tokens.float(), scheme, name="activation").dequantize()
        return (rounded.to(x.dtype).view_as(x), *args[1:])

    return hook
