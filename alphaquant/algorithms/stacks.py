"""Stacks: linears of one block that are solved together, with the Hessian of each.

Equal projections of a block's experts form one `[experts, out, in]` problem; every other linear is a
stack of one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.linalg.hessian import HessianAccumulator, shrink
from alphaquant.models.linear import LinearSpec

_STACK_BYTES = 2 << 30  # fp32 Hessians of one stack; larger ones are solved in parts


@dataclass(frozen=True)
class Stack:
    """Linears of equal shape, their Hessians `[n, in, in]` and the tokens behind each."""

    specs: Sequence[LinearSpec]
    hessian: Tensor
    tokens: Sequence[int]


def stacks(
    specs: Sequence[LinearSpec],
    accumulators: Mapping[str, HessianAccumulator],
    expert_shrinkage: float,
    sort_key: Mapping[str, Hashable] | None = None,
) -> Iterator[Stack]:
    """Group a block's linears; experts' Hessians are shrunk towards the mean over all experts.

    `sort_key` (by linear) splits experts further, by their scheme for example.
    """
    for sharing in sharing_stacks(specs, accumulators, expert_shrinkage, sort_key):
        yield from sharing


def sharing_stacks(
    specs: Sequence[LinearSpec],
    accumulators: Mapping[str, HessianAccumulator],
    expert_shrinkage: float,
    sort_key: Mapping[str, Hashable] | None = None,
) -> Iterator[list[Stack]]:
    """The same, those together that read the same inputs, such as q, k and v: they hold one tensor of Hessians."""
    for families in _sharing(specs):
        members = families[0]
        seen = [accumulators[spec.input_key] for spec in members]
        hessian = _hessians(seen)
        tokens = [accumulator.tokens for accumulator in seen]
        if members[0].expert is not None:
            effective, mass = (
                torch.tensor(numbers, device=hessian.device)
                for numbers in ([a.effective_tokens for a in seen], [a.mass for a in seen])
            )
            hessian = shrink(hessian, effective, expert_shrinkage, mass)
        parts: dict[tuple[int, ...], list[Sequence[LinearSpec]]] = {}
        for family in families:
            for chosen in _split(family, sort_key):
                parts.setdefault(tuple(chosen), []).append([family[i] for i in chosen])
        for part, together in parts.items():
            whole = len(part) == len(members) or hessian.stride(0) == 0
            some = hessian[: len(part)] if whole else hessian[list(part)]  # choosing copies
            yield [Stack(chosen, some, [tokens[i] for i in part]) for chosen in together]


def _hessians(seen: Sequence[HessianAccumulator]) -> Tensor:
    """One Hessian per accumulator `[n, in, in]`; a single one, in memory once, where all are the same."""
    first = seen[0]
    if len(seen) > 1 and all(accumulator is first for accumulator in seen):
        return first.hessian.expand(len(seen), -1, -1)
    return torch.stack([accumulator.hessian for accumulator in seen])


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
    members: Sequence[LinearSpec], sort_key: Mapping[str, Hashable] | None
) -> Iterator[list[int]]:
    parts: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(members):
        parts.setdefault(sort_key[spec.name] if sort_key else None, []).append(index)
    limit = max(1, _STACK_BYTES // (4 * members[0].cols ** 2))
    for indices in parts.values():
        for start in range(0, len(indices), limit):
            yield indices[start : start + limit]
