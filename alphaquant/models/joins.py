"""Where the outputs of linears join the residual stream, found by trying: a block's code is asked, not its name.

Something is added to a linear's output, and every point where a module of the block is handed as much as the block itself
is looked at: where exactly that comes out, times one factor, the output has been added to what is there. In a Llama the
attention's output joins what the second norm reads, the MLP's what the block answers; in parallel blocks both join the
answer; where a norm stands behind the output (gemma2), no further than that norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.experts import UnfusedExperts
from alphaquant.models.hooks import hooked, remember
from alphaquant.models.linear import LinearSpec, Role

WRITERS: tuple[Role, ...] = ("o", "down")
"""Roles of linears that may join the stream."""
TOKENS = 8
"""Of the first window: what trying takes."""
_OFF, _OFF_HALF = 1e-3, 3e-2  # in 32 and in 16 bits
_ELSE = 0.05
"""Share of the stream from which on it is more than what a linear wrote."""


@dataclass(frozen=True)
class Place:
    """Where a block shows what a linear does."""

    at: str | None
    """The module, by its path in the block, whose input is looked at; None for the block's answer."""
    factor: float | None = None
    """How much of the linear's output is part of that, 1 in most models; None where it is what the linear reads."""


@torch.no_grad()
def joins(
    model: BlockModel, block: nn.Module, index: int, specs: Sequence[LinearSpec], hidden: Tensor
) -> dict[str, Place]:
    """Where each of the linears `specs` joins the stream, by input key; those that join nowhere are left out.

    That is the first point with more in it than the linear's own output, which a dropout or a norm may be handed before; where
    there is none, the last one with just that. Further points may look alike where what follows changes little.
    Routed experts have one point together.
    """
    sample = hidden[:1, :TOKENS].to(model.device)
    fused = experts_by_part(block)
    writers: dict[nn.Module, list[str]] = {}
    for spec in specs:
        if spec.role not in WRITERS or spec.rows != sample.shape[-1]:
            continue
        module = model.linear(block, index, spec.name)
        writer = module if spec.expert is None else fused.get(module)
        if writer is not None:
            writers.setdefault(writer, []).append(spec.input_key)
    if not writers:
        return {}
    own: dict[nn.Module, Tensor] = {}
    with hooked(writers, remember(own)):
        plain = handed(model, block, index, sample)
    size = plain[None].float().square().mean().sqrt().clamp_min(1e-6)
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
    noise = (noise.to(size.device) * size).to(model.dtype).flatten(0, 1)
    found: dict[str, Place] = {}
    for writer, keys in writers.items():
        with hooked([writer], _plus(noise)):
            moved = handed(model, block, index, sample)
        reached = [
            (Place(at, factor), factor)
            for at in moved
            if at in plain
            and plain[at].shape == noise.shape
            and (factor := _factor(moved[at] - plain[at], noise))
        ]
        written = own[writer].reshape(noise.shape)
        fuller = [place for place, much in reached if _more(plain[place.at], much * written)]
        if reached:
            found |= dict.fromkeys(keys, fuller[0] if fuller else reached[-1][0])
    return found


def experts_by_part(block: nn.Module) -> dict[nn.Module, UnfusedExperts]:
    """The routed experts that each of their linears is of; not those that a model's own code runs."""
    every = [module for module in block.modules() if isinstance(module, UnfusedExperts)]
    return {part: experts for experts in every for part in experts.modules()}


def _more(stream: Tensor, written: Tensor) -> bool:
    """Whether there is more in the stream than what was written."""
    stream = stream.float()
    left = torch.linalg.vector_norm(stream - written.float())
    return bool(left > _ELSE * torch.linalg.vector_norm(stream))


def handed(
    model: BlockModel, block: nn.Module, index: int, sample: Tensor
) -> dict[str | None, Tensor]:
    """What modules are handed of every token `[tokens, width]`, in the order of their calls; under None the block's answer."""
    seen: dict[str | None, Tensor] = {}
    tokens = sample.shape[0] * sample.shape[1]

    def look(name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[:-1].numel() == tokens:
            seen.setdefault(name, args[0].flatten(0, -2).clone())

    with contextlib.ExitStack() as hooks:
        for name, module in block.named_modules():
            if module is not block:
                hooks.callback(module.register_forward_pre_hook(partial(look, name)).remove)
        seen[None] = model.run(block, index, sample).flatten(0, -2)
    return seen


def _plus(noise: Tensor) -> Callable[..., Tensor]:
    """A forward hook that puts `noise` on top of a module's output."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + noise.reshape(output.shape).to(output.dtype)

    return hook


def rounding(dtype: torch.dtype) -> float:
    """Relative difference that may be rounding."""
    return _OFF_HALF if dtype.itemsize < 4 else _OFF


def _factor(change: Tensor, noise: Tensor) -> float | None:
    """What `change` is a multiple of `noise` by; None where it is none."""
    allowed = rounding(change.dtype)
    change, noise = change.float(), noise.float()
    factor = float((change * noise).sum() / noise.square().sum())
    off = torch.linalg.vector_norm(change - factor * noise)
    near = off < allowed * abs(factor) * torch.linalg.vector_norm(noise)
    return factor if bool(near) else None
