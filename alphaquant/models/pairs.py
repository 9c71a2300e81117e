"""What a block's linears see behind quantized ones, beside what the original's see: Hessians, and what is lacking."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.linalg.drift import DriftAccumulator, Shortfall
from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.models.block import BlockModel
from alphaquant.models.experts import UnfusedExperts
from alphaquant.models.joins import Join, experts_of
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, token_weights
from alphaquant.models.unread import unread_left_out

_LEAST = 0.1
"""Of the mean weight that a block gives its experts: a token of less asks for no more than one of so much."""


@dataclass(frozen=True)
class Streams:
    """Hidden states in batches `[windows, length, hidden]`, of the same tokens."""

    now: Sequence[Tensor]
    """What the quantized blocks hand on."""
    before: Sequence[Tensor]
    """What the original's hand on."""
    answers: Sequence[Tensor]
    """What the original block makes of that."""


@dataclass(frozen=True)
class Pairs:
    """What was gathered, by input key."""

    hessians: dict[str, HessianAccumulator]
    drifts: dict[str, DriftAccumulator]
    """Of inputs whose linears have no known place in the stream."""
    shortfalls: dict[str, Shortfall]
    """Of all others."""


@timed("forward and Hessians")
@torch.no_grad()
def collect_pairs(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    routers: Sequence[LinearSpec],
    weights: Mapping[str, Tensor],
    streams: Streams,
    routing_weight: RoutingWeight = "none",
    joins: Mapping[str, Join] | None = None,
) -> Pairs:
    """Hessians of the inputs that `specs` read behind `weights` in place of some of the block's own, and what is lacking.

    Where a linear's output joins the stream (`joins`, by input key), it lacks what the stream lacks there; the others, what
    their inputs have lost. For those the original's tokens are sent to the experts that they are sent to now, so that
    they pair up. An expert lacks what its block does over the weight that the block gives its experts.
    """
    modules = {s.input_key: model.linear(block, index, s.name) for s in reversed(specs)}
    joined = {key: joins[key] for key in modules if key in joins} if joins else {}
    gates = [model.linear(block, index, spec.name) for spec in routers]
    experts = {
        spec.input_key: model.expert(block, index, spec.name)
        for spec in specs
        if spec.expert is not None
    }
    counted = experts if routing_weight != "none" else {}
    containers = {experts_of(block, modules[key]) for key in joined if key in experts}
    found = Pairs(
        {s.input_key: HessianAccumulator(s.cols, model.device) for s in specs},
        {
            s.input_key: DriftAccumulator(s.cols, model.device)
            for s in specs
            if s.input_key not in joined
        },
        {
            s.input_key: Shortfall(s.rows, s.cols, model.device)
            for s in specs
            if s.input_key in joined
        },
    )
    points = {join.at: join.at for join in joined.values() if join.at is not None}
    answered = any(join.at is None for join in joined.values())
    apart = {key: module for key, module in modules.items() if key not in joined}

    def look(now: Mapping[Any, nn.Module], hidden: Tensor, *others: Any) -> dict[Any, Any]:
        enough = not answered and not experts
        with (
            _given(now, lambda args: args[0], enough=enough) as seen,
            contextlib.suppress(_Enough),
        ):
            seen[None] = model.run(block, index, hidden, *others)
        return seen

    with contextlib.ExitStack() as left_out:
        if not answered:
            left_out.enter_context(unread_left_out(model, block, index, specs))
        for now, before, answers in zip(streams.now, streams.before, streams.answers, strict=True):
            choices: dict[nn.Module, Any] = {}
            with (
                _given(counted, lambda args: token_weights(args, routing_weight)) as routing,
                _given({one: one for one in containers if one}, lambda args: args[1:3]) as sent,
                _hooked(gates, _remember(choices)),
            ):
                seen = look(modules | points, now, weights)
            wanted: dict[Any, Any] = {None: answers}
            if apart or points:
                with _hooked(gates, _repeat(choices)):
                    wanted = look(apart | points, before) | wanted
            gaps = {
                join: (wanted[join.at].to(model.device).float() - seen[join.at].float())
                / join.factor
                for join in set(joined.values())
            }
            asked: dict[nn.Module, Tensor] = {}
            for container, args in sent.items():
                [join] = {joined[key] for key in joined if experts.get(key) in set(container)}
                asked |= _asked(container, gaps[join], *args)
            for key in modules.keys() & seen.keys():
                found.hessians[key].update(seen[key], routing.get(key))
                if key in apart:
                    found.drifts[key].update_pair(wanted[key], seen[key], routing.get(key))
                else:
                    gap = asked[experts[key]] if key in experts else gaps[joined[key]]
                    found.shortfalls[key].update(gap, seen[key], routing.get(key))
    return found


def _asked(
    experts: UnfusedExperts, gap: Tensor, chosen: Tensor, weights: Tensor
) -> dict[nn.Module, Tensor]:
    """What a block lacks `[windows, length, hidden]` as what each of its experts lacks, in the order of its tokens."""
    mass = weights.float().sum(-1)
    each = gap.flatten(0, -2) / mass.clamp_min(_LEAST * mass.mean())[:, None]
    own = zip(experts, experts.sent(chosen, weights), strict=True)
    return {expert: each[tokens] for expert, (tokens, _) in own}


class _Enough(Exception):
    """Everything was seen that was asked for, and the rest of the block need not run."""


@contextlib.contextmanager
def _given(
    modules: Mapping[Any, nn.Module],
    read: Callable[[tuple[Tensor, ...]], Any],
    *,
    enough: bool = False,
) -> Iterator[dict[Any, Any]]:
    """While open, what `read` finds in the last arguments of each module, by its key; raises _Enough after the last if told to."""
    seen: dict[Any, Any] = {}

    def hook(key: Any) -> Callable[..., None]:
        def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[key] = read(args)
            if enough and len(seen) == len(modules):
                raise _Enough

        return look

    with contextlib.ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook(key)).remove)
        yield seen


@contextlib.contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def _remember(choices: dict[nn.Module, Any]) -> Callable[..., None]:
    def hook(router: nn.Module, _args: Any, output: Any) -> None:
        choices[router] = output

    return hook


def _repeat(choices: Mapping[nn.Module, Any]) -> Callable[..., Any]:
    return lambda router, _args, _output: choices.get(router)
