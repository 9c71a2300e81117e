"""Stacks: linears of one block that are solved together, with the Hessian of each.

Equal projections of a block's experts form one `[experts, out, in]` problem; every other linear is a
stack of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.linalg.hessian import HessianAccumulator, pooled, shrink
from alphaquant.models.checkpoint import finite
from alphaquant.models.linear import LinearSpec
from alphaquant.models.read_ahead import in_order

PART = 2 << 30
"""Bytes of the fp32 Hessians that are solved at once; stacks with more are solved in parts."""


AtOnce: TypeAlias = Callable[[Sequence[LinearSpec]], int]
"""Linears of one expert that read the same inputs, to how many experts are solved at once."""


@dataclass(frozen=True)
class Stack:
    """Linears of equal shape, their Hessians `[n, in, in]` and the tokens behind each."""

    specs: Sequence[LinearSpec]
    hessian: Tensor
    tokens: Sequence[int]


class Weights(Protocol):
    """A checkpoint, or one seen through scales."""

    def weight(self, linear: str) -> Tensor:
        """A linear's weight `[out, in]` by name."""


@timed("load weights")
def stacked_weight(weights: Weights, stack: Stack, device: torch.device) -> Tensor:
    """The weights of a stack's linears `[n, out, in]`, in fp32. Raises ModelError that names one with NaN or infinity."""
    read = in_order(weights.weight, [spec.name for spec in stack.specs], device)
    return torch.stack(
        [
            finite(weight.to(device), spec.name).float()
            for spec, weight in zip(stack.specs, read, strict=True)
        ]
    )


def stacks(
    specs: Sequence[LinearSpec],
    accumulators: Mapping[str, HessianAccumulator],
    expert_shrinkage: float,
    sort_key: Mapping[str, Hashable] | None = None,
    at_once: AtOnce | None = None,
) -> Iterator[Stack]:
    """Group a block's linears; experts' Hessians are shrunk towards the mean over all experts.

    `sort_key` (by linear) splits experts further, by their scheme for example. `at_once` says how many experts a stack
    has at most. Hessians are made for one stack after the other.
    """
    for sharing in sharing_stacks(specs, accumulators, expert_shrinkage, sort_key, at_once):
        yield from sharing


def sharing_stacks(
    specs: Sequence[LinearSpec],
    accumulators: Mapping[str, HessianAccumulator],
    expert_shrinkage: float,
    sort_key: Mapping[str, Hashable] | None = None,
    at_once: AtOnce | None = None,
) -> Iterator[list[Stack]]:
    """The same, those together that read the same inputs, such as q, k and v: they hold one tensor of Hessians."""
    for families in _sharing(specs):
        members = families[0]
        every = [accumulators[spec.input_key] for spec in members]
        prior = pooled(every) if members[0].expert is not None else None
        readers = [family[0] for family in families]
        most = at_once(readers) if at_once else max(1, PART // (4 * members[0].cols ** 2))
        parts: dict[tuple[int, ...], list[Sequence[LinearSpec]]] = {}
        for family in families:
            for chosen in _split(family, sort_key, most):
                parts.setdefault(tuple(chosen), []).append([family[i] for i in chosen])
        for part, together in parts.items():
            # no name for it here: it would be in memory still while the next one is made
            yield _of_one(together, [every[i] for i in part], expert_shrinkage, prior)


def _of_one(
    together: Sequence[Sequence[LinearSpec]],
    seen: Sequence[HessianAccumulator],
    strength: float,
    prior: Tensor | None,
) -> list[Stack]:
    """Stacks over one tensor of Hessians."""
    hessian = _hessians(seen)
    if prior is not None:
        effective = torch.tensor([accumulator.effective_tokens for accumulator in seen])
        hessian = shrink(hessian, effective, strength, prior)
    tokens = [accumulator.tokens for accumulator in seen]
    return [Stack(specs, hessian, tokens) for specs in together]


def _hessians(seen: Sequence[HessianAccumulator]) -> Tensor:
    """One Hessian per accumulator `[n, in, in]`; a single one, in memory once, where all are the same."""
    first = seen[0]
    if all(accumulator is first for accumulator in seen):
        return first.hessian.expand(len(seen), -1, -1)
    found = torch.empty(len(seen), first.cols, first.cols, device=first.device)
    for hessian, accumulator in zip(found, seen, strict=True):
        torch.mul(accumulator.total, accumulator.scale, out=hessian)
    return found


def _sharing(specs: Sequence[LinearSpec]) -> Iterator[list[list[LinearSpec]]]:
    """Families whose linears read the same inputs in the same order."""
    by_inputs: dict[Hashable, list[list[LinearSpec]]] = {}
    for family in _families(specs):
        by_inputs.setdefault(tuple(spec.input_key for spec in family), []).append(family)
    yield from by_inputs.values()


def _families(specs: Sequence[LinearSpec]) -> Iterator[list[LinearSpec]]:
    families: dict[Hashable, list[LinearSpec]] = {}
    for spec in specs:
        alone = spec.name if spec.expert is None else None
        families.setdefault((alone, spec.role, spec.rows, spec.cols), []).append(spec)
    yield from families.values()


def _split(
    members: Sequence[LinearSpec], sort_key: Mapping[str, Hashable] | None, most: int
) -> Iterator[list[int]]:
    parts: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(members):
        parts.setdefault(sort_key[spec.name] if sort_key else None, []).append(index)
    for indices in parts.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]
