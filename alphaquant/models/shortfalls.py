"""What a block's linears see behind quantized ones, and what they lack beside the original: Hessians and shortfalls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.linalg.shortfall import Shortfall
from alphaquant.models.block import BlockModel
from alphaquant.models.experts import UnfusedExperts
from alphaquant.models.hooks import Enough, given
from alphaquant.models.joins import Place, experts_by_part
from alphaquant.models.linear import LinearSpec, first_readers
from alphaquant.models.observe import RoutingWeight, token_weights
from alphaquant.models.original import Original
from alphaquant.models.shortcuts import Shortcut, along
from alphaquant.models.unread import unread_left_out


@dataclass(frozen=True)
class Streams:
    """What the quantized blocks hand on `[windows, length, hidden]`, beside what the original has of the same tokens."""

    now: Tensor
    original: Original
    batch_size: int
    """Windows that are computed at once."""
    ways: Sequence[Shortcut] = ()
    """Through the block, made in the first pass that may keep them."""


def batches(windows: int, batch_size: int) -> Iterator[tuple[int, slice]]:
    """The half of the windows that a batch is of, 0 or 1, and which windows it has."""
    middle = windows // 2
    for half, begin, end in ((0, 0, middle), (1, middle, windows)):
        for start in range(begin, end, batch_size):
            yield half, slice(start, min(start + batch_size, end))


@dataclass(frozen=True)
class Observed:
    """What was gathered, by input key."""

    hessians: dict[str, HessianAccumulator]
    shortfalls: dict[str, Shortfall]
    """Of outputs where they join the stream, else of inputs."""
    first: dict[str, Tensor]
    """X̃X̃ᵀ `[in, in]` of the first half of the windows."""


@timed("forward and Hessians")
@torch.no_grad()
def observe_shortfalls(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    weights: Mapping[str, Tensor],
    streams: Streams,
    routing_weight: RoutingWeight = "none",
) -> Observed:
    """Hessians of the inputs that `specs` read behind `weights` in place of some of the block's own, and what is lacking.

    Outputs that join the stream lack what the stream lacks there, and an expert's that over the weight which the block
    gives its experts; of others, their inputs tell.
    """
    by_key = first_readers(specs)
    linears = {(key,): model.linear(block, index, spec.name) for key, spec in by_key.items()}
    experts = {
        key: model.expert(block, index, spec.name)
        for key, spec in by_key.items()
        if spec.expert is not None
    }
    every = streams.original.places
    places = {key: every[key] for key in by_key if key in every}
    points = {at: block.get_submodule(at) for p in places.values() if (at := p.at) is not None}
    fused = experts_by_part(block)
    containers = {one: one for key in experts if (one := fused.get(linears[key,])) is not None}
    found = Observed(
        {key: HessianAccumulator(spec.cols, model.device) for key, spec in by_key.items()},
        {key: _nothing(by_key[key], place, model.device) for key, place in places.items()},
        {},
    )
    # nothing behind the last place need be computed
    answered = any(place.at is None for place in places.values())
    enough = not answered and not experts
    # what is looked at has to run
    ways = [w for w in streams.ways if not (w.whole and any(w.inside(at) for at in points))]
    with contextlib.ExitStack() as left_out:
        if not answered and all(spec.role != "down" for spec in specs):
            left_out.enter_context(unread_left_out(model, block, index, specs))
        for half, part in batches(len(streams.now), streams.batch_size):
            if half and not found.first:
                found.first.update({key: found.hessians[key].total.clone() for key in places})
            with (
                given(
                    experts if routing_weight != "none" else {},
                    lambda args: token_weights(args, routing_weight),
                ) as counts,
                given(containers, lambda args: args[1:3]) as sent,
                along(ways, block, part, specs),  # keeps what ends the pass, so it comes first
                given(linears | points, enough=enough) as seen,
                contextlib.suppress(Enough),
            ):
                seen[None] = model.run(block, index, streams.now[part], weights)
            for key in by_key:
                if (key,) in seen:
                    found.hessians[key].update(seen[key,], counts.get(key))
            wanted = {at: x[part] for at, x in streams.original.there.items()}
            for key, gap in _gaps(places, experts, wanted, seen, sent):
                found.shortfalls[key].update(half, gap, seen[key,], counts.get(key))
    return found


def _nothing(spec: LinearSpec, place: Place, device: torch.device) -> Shortfall:
    return Shortfall(spec.rows, spec.cols, device, of_inputs=place.factor is None)


def _gaps(
    places: Mapping[str, Place],
    experts: Mapping[str, nn.Module],
    wanted: Mapping[str | None, Tensor],
    seen: Mapping[Any, Tensor],
    sent: Mapping[UnfusedExperts, tuple[Tensor, Tensor]],
) -> Iterator[tuple[str, Tensor]]:
    """What outputs or inputs lack `[tokens, width]`, by input key; an expert's in the order of the tokens that it gets."""
    for place in set(places.values()):
        now = seen[place.at].flatten(0, -2).float()
        gap = wanted[place.at].to(now.device).flatten(0, -2).float() - now
        keys = [key for key in places if places[key] == place]
        names = {experts[key]: key for key in keys if key in experts}
        if place.factor is not None:
            gap /= place.factor
        yield from ((key, gap) for key in keys if key not in experts)
        for container, (chosen, weights) in sent.items() if names else ():
            if place.factor is not None:
                # by the weights that tokens have in an expert's sums, none of them asks for more than its gap
                gap = gap / weights.float().sum(-1, keepdim=True).clamp_min(1e-6)
            own = zip(container, container.sent(chosen, weights), strict=True)
            for expert, (tokens, _) in own:
                if expert in names and len(tokens):
                    yield names[expert], gap[tokens]
