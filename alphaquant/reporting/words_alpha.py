"""What this model shows about alpha, in sentences: never more than its own numbers carry."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alphaquant.reporting.budget import (
    HIGH,
    HIGH_WITHIN,
    LOW,
    LOW_WITHIN,
    MEASURED,
    BudgetComparison,
)
from alphaquant.reporting.linears import Relation
from alphaquant.reporting.notation import number, percent, signed
from alphaquant.reporting.statistics import Correlation
from alphaquant.reporting.tables import ReportInputs


def direction_words(relation: Relation) -> list[str]:
    """Two sentences: how alpha and `relation.y` go together, and what is left given the controls."""
    plain, partial = relation.plain, relation.partial
    if not plain.exists:
        return [
            f"In this model no rank correlation between alpha and the {relation.thing} can be computed: "
            f"{plain.count} linears have both, and one of the two may be constant."
        ]
    evidence = f"ρ = {signed(plain.value)} ({_interval(plain)}, {plain.count:,} linears)"
    if plain.excludes_zero:
        first = (
            f"In this model higher alpha goes with {_more(plain)} {relation.thing}: rank correlation "
            f"{evidence}{_strength(plain)}."
        )
    elif np.isnan(plain.low):
        first = (
            f"In this model the rank correlation of alpha and the {relation.thing} is {evidence}; "
            "that few linears decide nothing."
        )
    else:
        first = (
            f"In this model alpha does not rank the linears by their {relation.thing} with any certainty: "
            f"rank correlation {evidence}; the interval includes zero."
        )
    if "format" in relation.given and bool(relation.data["scheme"].nunique() > 1):
        first += " The linears carry different formats, so the next number weighs more."
    return [first, _given(relation, plain, partial)]


def protect_words(inputs: ReportInputs, relation: Relation | None) -> str:
    """Whether the plan was made from alpha, and whether this model supports the direction it took."""
    policy = inputs.setting("allocation", "policy")
    protect = inputs.setting("allocation", "protect", "high_alpha")
    if policy is None:
        return ""
    if policy not in ("ratio", "alpha"):
        return f"The plan (policy `{policy}`) does not use alpha, so this is for the record, not the plan's basis."
    if protect == "measured":
        return f"Policy `{policy}` took the direction of alpha from this measurement (`protect: measured`)."
    ends = {"high_alpha": ("high", 1.0), "low_alpha": ("low", -1.0)}
    end, sign = ends.get(str(protect), ("high", 1.0))
    text = (
        f"The plan (policy `{policy}`) gave linears of {end} alpha more bits (`protect: {protect}`)"
    )
    if relation is None or not relation.plain.exists:
        return f"{text}; this run holds no measurement to judge that by."
    if not relation.plain.excludes_zero:
        return f"{text}; this measurement neither supports nor contradicts that."
    agrees = relation.plain.value * sign > 0
    return f"{text}, which this measurement {'supports' if agrees else 'contradicts'}."


def prior_words(inputs: ReportInputs) -> str:
    """What alpha adds to the measured end-loss weights, learned from their own noise."""
    prior = (inputs.allocation or {}).get("alpha_prior")
    if not isinstance(prior, Mapping):
        return ""
    found = (
        f"As a prior for the measured losses alpha gets a weight of {percent(float(prior['share']))}: role and block "
        f"leave a variance of {number(float(prior['without']))} in the log weights of linears they have not seen, "
        f"alpha on top {number(float(prior['with_alpha']))}, and the measurement's own noise is "
        f"{number(float(prior['noise']))}."
    )
    if float(prior["precision"]) == 0:
        return f"{found} Alpha adds nothing here, so the measurement stands as it is."
    used = "The plan used it." if prior.get("used") else "The plan did not use it (`alpha_prior`)."
    return f"{found} {used}"


def scope_words() -> str:
    """How far the finding reaches."""
    return (
        "This is what this model shows with this calibration text, at this precision. The sign differs between "
        "models, roles and sizes, so it is a finding to check, not a rule to carry over."
    )


def method_words(relation: Relation) -> str:
    """Where the intervals come from."""
    if relation.plain.method == "bootstrap" == relation.partial.method:
        return (
            "Intervals are 95 %, from resampling whole groups: the attention of a block, its MLP, or one expert, "
            "whose linears share inputs and are no independent draws."
        )
    if "bootstrap" in (relation.plain.method, relation.partial.method):
        return (
            "Intervals are 95 %; where groups (attention, MLP, expert of a block) are many they are resampled whole, "
            "otherwise the interval is Fisher's (Bonett and Wright), which takes linears as independent."
        )
    return (
        "Intervals are 95 %, Fisher's (Bonett and Wright): there are too few groups to resample. They take linears "
        "as independent, and linears of one block are not quite, so true intervals are wider."
    )


def budget_verdict(found: BudgetComparison) -> str:
    """Which direction of alpha is better at the plan's bits, next to chance."""
    high, low = found.losses[HIGH], found.losses[LOW]
    start, end = (float(value) for value in np.percentile(found.random, [2.5, 97.5]))
    better, worse = ("high", "low") if high <= low else ("low", "high")
    best, other = min(high, low), max(high, low)
    if best < start:
        verdict = f"protecting {better} alpha is the better direction and beats chance"
    elif best <= end:
        verdict = (
            f"protecting {better} alpha is the better direction, but within the range of chance"
        )
    else:
        verdict = "both directions of alpha are worse than chance"
    return (
        f"At equal bits {verdict}: {better} alpha first predicts a summed loss of {number(best)} nats per token, "
        f"{worse} alpha first {number(other)}, 95 % of random orders {number(start)} to {number(end)}."
    )


def budget_words(found: BudgetComparison) -> list[str]:
    """The equal-budget comparison in full: how it was made, the verdict, and what does better."""
    how = (
        f"Equal-budget comparison: {number(found.bits)} bits per weight are spent by raising linears from "
        f"`{found.low}` to `{found.high}` in different orders."
    )
    more = (
        f"Within each role, high alpha first predicts {number(found.losses[HIGH_WITHIN])} and low alpha first "
        f"{number(found.losses[LOW_WITHIN])}: what is left of alpha once roles get equal shares. Ordering by the "
        f"measured loss itself predicts {number(found.losses[MEASURED])}"
    )
    if found.plan is not None:
        more += f", and this run's plan, with all its formats, {number(found.plan)}"
    return [how, budget_verdict(found), more + "."]


def _given(relation: Relation, plain: Correlation, partial: Correlation) -> str:
    if not partial.exists:
        return (
            f"Given {relation.given} nothing can be said: {partial.count} linears are too few for these "
            "controls, or the controls fix the order of one of the two."
        )
    evidence = f"Given {relation.given} it is ρ = {signed(partial.value)} ({_interval(partial)})"
    if np.isnan(partial.low):
        return f"{evidence}; too few linears for an interval."
    if not partial.excludes_zero:
        return (
            f"{evidence}; the interval includes zero, so the data do not show that alpha tells more than "
            f"{relation.given} already do."
        )
    if not plain.excludes_zero:
        return f"{evidence}: among linears alike in these, higher alpha goes with {_more(partial)} {relation.thing}."
    if partial.value * plain.value > 0:
        return f"{evidence}: alpha tells something of its own, in the same direction{_strength(partial)}."
    return f"{evidence}: among linears alike in these, the direction is the opposite."


def _more(found: Correlation) -> str:
    return "higher" if found.value > 0 else "lower"


def _strength(found: Correlation) -> str:
    size = abs(found.value)
    return ", a weak link" if size < 0.3 else ", a strong one" if size >= 0.7 else ""


def _interval(found: Correlation) -> str:
    if np.isnan(found.low):
        return "no interval"
    return f"95 % interval {signed(found.low)} to {signed(found.high)}"
