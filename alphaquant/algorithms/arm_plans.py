"""The plans of an arm: every one under the same rules, menu, groups and budget in stored bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np

from alphaquant.algorithms.allocation_prior import apply_prior
from alphaquant.algorithms.allocation_random import random_plan
from alphaquant.algorithms.arm_table import ArmPlan, ArmTable, Guide, Knowledge
from alphaquant.algorithms.arms import ArmName
from alphaquant.errors import PlanError
from alphaquant.plan import QuantPlan
from alphaquant.progress import unreported

ALPHA_GUIDES: tuple[Guide, ...] = ("hill / null", "hill", "farms")
TOLERANCES = (0.005, 0.02, 0.1)
"""Bits per weight by which a random plan may fall short of the budget: the first that groups allow."""


def arm_plans(name: ArmName, known: Knowledge, draws: int, seed: int) -> list[ArmPlan]:
    """The plans of an arm: `draws` of one that chance has a part in, else one.

    Raises PlanError when the budget cannot be met, or `known` lacks the oracle's table for its arm.
    """
    with unreported():
        table = ArmTable(known)
        random = [np.random.default_rng((seed, number)) for number in range(draws)]
        if name == "random":
            return [table.told(_random(table, int(one.integers(2**31)))) for one in random]
        direction, _, control = name.partition("_")
        if control not in ("shuffled", "permuted"):
            return [_single(name, table)]
        guide, gamma, best = _best(direction, table)
        if control == "shuffled":
            return [table.told(table.shuffled(best.plan, one), best.variant) for one in random]
        return [
            table.told(table.guided(table.permuted(table.guide(guide), one), gamma), best.variant)
            for one in random
        ]


def _random(table: ArmTable, seed: int) -> QuantPlan:
    known = table.known
    for tolerance in TOLERANCES[:-1]:
        with contextlib.suppress(PlanError):
            return random_plan(known.specs, table.config, known.quantization, seed, tolerance)
    return random_plan(known.specs, table.config, known.quantization, seed, TOLERANCES[-1])


def _single(name: ArmName, table: ArmTable) -> ArmPlan:
    if name in ("low", "high", "kurtosis", "local_alpha"):
        return _best(name, table)[2]
    if name in ("uniform", "types"):
        return table.told(table.raised(table.by_type() if name == "types" else table.evenly()))
    if name == "variance":
        return table.told(table.guided(table.guide("hill / null"), 0.0))
    if name == "alphaq":
        farms = table.guide("farms")
        return _chosen(
            table,
            (
                (table.guided(farms, -gamma, alphaq=True), f"farms, gamma {gamma:g}")
                for gamma in table.known.gammas
            ),
        )
    if name == "local":
        return table.told(table.spent(table.output_change()))
    losses, variant, known = table.measured(), "", table.known
    if name == "fisher_prior":
        losses, prior = apply_prior(table.free, losses, known.hill, known.sensitivity)
        variant = f"weight of alpha {prior.share:.2%}" if prior else "noise is not known"
    elif name == "oracle":
        if known.oracle is None:
            raise PlanError("the arm oracle needs the losses that the stage oracle measures")
        factor = known.oracle.set_index("linear")["factor"]
        losses = losses.mul(factor.reindex(losses.index).fillna(1.0), axis=0)
    return table.told(table.spent(losses), variant)


def _best(name: str, table: ArmTable) -> tuple[Guide, float, ArmPlan]:
    """Guide, signed gamma and plan of the best variant, by predicted loss, of an arm with a choice."""
    guides: tuple[Guide, ...] = ("kurtosis",) if name == "kurtosis" else ALPHA_GUIDES
    signs = {"low": (-1,), "high": (1,)}.get(name, (-1, 1))
    variants: dict[str, tuple[Guide, float]] = {}
    for kind in guides:
        for sign in signs:
            for gamma in table.known.gammas:
                end = "" if len(signs) == 1 else ("high " if sign > 0 else "low ")
                variants[f"{end}{kind}, gamma {gamma:g}"] = (kind, sign * gamma)

    def plan(kind: Guide, gamma: float) -> QuantPlan:
        guide = table.guide(kind)
        if name != "local_alpha":
            return table.guided(guide, gamma)
        # in logarithms, relative to the largest: a large gamma leaves the range of floats
        weight = gamma * np.log(guide)
        return table.spent(table.output_change().mul(np.exp(weight - weight.max()), axis=0))

    best = _chosen(table, ((plan(*chosen), text) for text, chosen in variants.items()))
    return *variants[best.variant], best


def _chosen(table: ArmTable, variants: Iterable[tuple[QuantPlan, str]]) -> ArmPlan:
    """The variant of least predicted loss."""
    told = [table.told(plan, variant) for plan, variant in variants]
    tried = {one.variant: one.predicted for one in told if one.predicted is not None}
    best = min(told, key=lambda one: np.inf if one.predicted is None else one.predicted)
    return ArmPlan(best.plan, best.variant, best.predicted, tried)
