"""What of a plan that a policy has yet to choose can be told before: no hour is spent on what could not load.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alphaquant.algorithms.allocation_groups import BF16, LOWEST, MIDDLE, menu
from alphaquant.algorithms.allocation_rules import (
    default_scheme,
    finish_plan,
    granularity_of,
    resolve_rules,
)
from alphaquant.config import AllocationConfig, ExportConfig, QuantizationConfig
from alphaquant.export.consumers import plan_needs, violations
from alphaquant.export.group_rules import Violation
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.support import support_of
from alphaquant.models.architecture import Architecture
from alphaquant.models.linear import LinearSpec
from alphaquant.models.stock import Need
from alphaquant.plan import QuantPlan

_TOGETHER = ("fused", "uniform")
"""Rules that look at several linears: a plan may keep them although one of its schemes alone does not."""

_OF_GROUPS = ("shape", "tensor_parallel")
"""Rules that another group size mends."""


def foreseen(
    specs: Sequence[LinearSpec],
    architecture: Architecture,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    export: ExportConfig,
) -> list[Violation]:
    """Violations of a uniform or manual plan; those of any other policy that no choice of its could avoid, and
    schemes of its menu that would not load anywhere they may be used.
    """
    if export.format == "dense":
        return []
    plans = _plans(specs, allocation, quantization)
    found = {scheme: violations(plan, architecture, export) for scheme, plan in plans}
    first, *others = found.values()
    if not others:
        return first
    certain = [v for v in first if v.rule in _TOGETHER and all(_has(v, each) for each in others)]
    single: dict[object, tuple[Violation, Scheme]] = {}
    for scheme, each in found.items():
        for v in (v for v in each if v.rule not in _TOGETHER):
            # groups are the same for all formats: one word is enough
            key = (v.consumer, v.rule, v.linears) if v.rule in _OF_GROUPS else v
            single.setdefault(key, (v, scheme))
    chosen = allocation.policy != "ratio"
    told = [
        v
        if not chosen or v.rule in _OF_GROUPS or all(v in each for each in found.values())
        else _without(scheme, v)
        for v, scheme in single.values()
    ]
    return told + certain + list(_loose(allocation, export))


def _without(scheme: Scheme, violation: Violation) -> Violation:
    remedy = f"Leave {scheme} out of allocation.formats. Instead: {violation.remedy}"
    return replace(violation, remedy=remedy)


def known_plan(
    specs: Sequence[LinearSpec], allocation: AllocationConfig, quantization: QuantizationConfig
) -> QuantPlan | None:
    """The plan of a policy that looks at no weights; None for the others."""
    plans = [plan for _, plan in _plans(specs, allocation, quantization)]
    return plans[0] if len(plans) == 1 else None


def foreseen_need(
    specs: Sequence[LinearSpec],
    architecture: Architecture,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    export: ExportConfig,
) -> Need | None:
    """What plain transformers will need to load the checkpoint; None where that is up to the plan to be chosen."""
    needs = {
        plan_needs(plan, architecture, export)
        for _, plan in _plans(specs, allocation, quantization)
    }
    if "alphaquant.load" in needs:
        return "alphaquant.load"
    mixes = len(_choices(allocation, quantization)) > 1 and architecture.experts_keys
    if len(needs) > 1 or (mixes and export.format != "dense" and needs == {"nothing"}):
        return None
    return needs.pop()


def _plans(
    specs: Sequence[LinearSpec], allocation: AllocationConfig, quantization: QuantizationConfig
) -> Iterator[tuple[Scheme, QuantPlan]]:
    """One plan per scheme that the policy may choose, given to all linears that are free."""
    rules = resolve_rules(specs, allocation, quantization)
    for scheme in _choices(allocation, quantization):
        chosen = dict.fromkeys((spec.name for spec in rules.free), scheme)
        yield scheme, finish_plan(rules, chosen, allocation)


def _choices(allocation: AllocationConfig, quantization: QuantizationConfig) -> list[Scheme]:
    if allocation.policy in ("uniform", "manual"):
        return [default_scheme(allocation, quantization)]
    if allocation.policy != "ratio":
        return menu(allocation, quantization)
    shares = {
        LOWEST: allocation.mxfp4_ratio,
        BF16: allocation.bf16_ratio,
        MIDDLE: 1 - allocation.mxfp4_ratio - allocation.bf16_ratio,
    }
    return [scheme for scheme, share in shares.items() if share > 0]


def _has(violation: Violation, found: Sequence[Violation]) -> bool:
    return any((v.consumer, v.rule) == (violation.consumer, violation.rule) for v in found)


def _loose(allocation: AllocationConfig, export: ExportConfig) -> Iterator[Violation]:
    """A policy that mixes what a consumer fuses."""
    granularity = granularity_of(allocation)
    if granularity == "fused" or export.format == "dense":
        return
    for name in dict.fromkeys(export.consumers):
        if support_of(name, export.format).fuses:
            yield Violation(
                name,
                "granularity",
                (),
                "q, k and v, gate and up, and all experts of a block are one kernel each and must share one "
                f"scheme; found allocation.granularity={granularity} with policy {allocation.policy}",
                "Set allocation.granularity=fused.",
            )
