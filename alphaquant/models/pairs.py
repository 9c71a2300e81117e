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
from alphaquant.models.hooks import hooked, remember
from alphaquant.models.joins import JoinPoint, experts_by_part
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, token_weights
from alphaquant.models.unread import unread_left_out


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
    """Where some linear has no known place in the stream."""
    shortfalls: dict[str, Shortfall]
    """Where every one has."""


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
    joins: Mapping[str, JoinPoint] | None = None,
) -> Pairs:
    """Hessians of the inputs that `specs` read behind `weights` in place of some of the block's own, and what is lacking.

    Where the outputs of all of them join the stream (`joins`, by input key), they lack what the stream lacks there, and an
    expert that over the weight which the block gives its experts. Elsewhere they lack what their inputs have lost, and
    the original's tokens are sent to the experts that they are sent to now, so that they pair up.
    """
    modules = {s.input_key: model.linear(block, index, s.name) for s in reversed(specs)}
    joined = (
        {key: joins[key] for key in modules} if joins and modules.keys() <= joins.keys() else {}
    )
    points = {join.at: join.at for join in joined.values() if join.at is not None}
    answered = any(join.at is None for join in joined.values())
    experts = {
        s.input_key: model.expert(block, index, s.name) for s in specs if s.expert is not None
    }
    fused = experts_by_part(block) if joined else {}
    containers = {fused[modules[key]] for key in joined if key in experts}
    counted = experts if routing_weight != "none" else {}
    gates = [model.linear(block, index, spec.name) for spec in routers]
    by_key = {spec.input_key: spec for spec in specs}.items()
    hessians = {key: HessianAccumulator(spec.cols, model.device) for key, spec in by_key}
    found = Pairs(hessians, {}, {})
    if joined:
        found.shortfalls.update({k: Shortfall(s.rows, s.cols, model.device) for k, s in by_key})
    else:
        found.drifts.update({k: DriftAccumulator(s.cols, model.device) for k, s in by_key})

    def look(at: Mapping[Any, nn.Module], hidden: Tensor, *others: Any) -> dict[Any, Any]:
        enough = not answered and not experts
        with (
            _given(at, lambda args: args[0], enough=enough) as seen,
            contextlib.suppress(_Enough),
        ):
            seen[None] = model.run(block, index, hidden, *others)
        return seen

    with contextlib.ExitStack() as left_out:
        if not joined:
            left_out.enter_context(unread_left_out(model, block, index, specs))
        for now, before, answers in zip(streams.now, streams.before, streams.answers, strict=True):
            choices: dict[nn.Module, Any] = {}
            with (
                _given(counted, lambda args: token_weights(args, routing_weight)) as routing,
                _given({one: one for one in containers}, lambda args: args[1:3]) as sent,
                hooked(gates, remember(choices)),
            ):
                seen = look(modules | points, now, weights)
            for key in modules.keys() & seen.keys():
                hessians[key].update(seen[key], routing.get(key))
            if joined:
                wanted = (look(points, before) if points else {}) | {None: answers}
                for key, gap in _gaps(joined, experts, wanted, seen, sent):
                    found.shortfalls[key].update(gap, seen[key], routing.get(key))
            else:
                with hooked(gates, _repeat(choices)):
                    wanted = look(modules, before)
                for key in modules.keys() & seen.keys():
                    found.drifts[key].update_pair(wanted[key], seen[key], routing.get(key))
    return found


def _gaps(
    joined: Mapping[str, JoinPoint],
    experts: Mapping[str, nn.Module],
    wanted: Mapping[nn.Module | None, Tensor],
    seen: Mapping[Any, Tensor],
    sent: Mapping[UnfusedExperts, tuple[Tensor, Tensor]],
) -> Iterator[tuple[str, Tensor]]:
    """What the outputs of the linears lack, by input key; an expert's in the order of the tokens that it gets."""
    for join in set(joined.values()):
        gap = wanted[join.at].to(seen[join.at].device).float() - seen[join.at].float()
        gap /= join.factor
        keys = [key for key in joined if joined[key] == join]
        yield from ((key, gap) for key in keys if key not in experts)
        names = {experts[key]: key for key in keys if key in experts}
        for container, (chosen, weights) in sent.items() if names else ():
            # by the weights that tokens have in an expert's sums, none of them asks for more than its gap
            each = gap.flatten(0, -2) / weights.float().sum(-1, keepdim=True).clamp_min(1e-6)
            own = zip(container, container.sent(chosen, weights), strict=True)
            for expert, (tokens, _) in own:
                if expert in names and len(tokens):
                    yield names[expert], each[tokens]


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


def _repeat(choices: Mapping[nn.Module, Any]) -> Callable[..., Any]:
    return lambda router, _args, _output: choices.get(router)
