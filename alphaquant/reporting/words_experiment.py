"""What an experiment says about alpha, in sentences: the rule's answer first, then what it rests on."""

from __future__ import annotations

import numpy as np

from alphaquant.algorithms.arms import ARMS, ArmName
from alphaquant.evaluation.paired import Comparison, Interval
from alphaquant.evaluation.verdict import ADDITIONS, CONTROLS, DIRECTIONS, Verdict
from alphaquant.reporting.notation import number, signed
from alphaquant.reporting.statistics import Correlation

_BASELINES: dict[ArmName, str] = {
    "variance": "the same rule at gamma 0",
    "uniform": "spreading two formats evenly",
    "fisher": "spending by predicted loss, which reads the calibration text",
}


def answer_words(verdict: Verdict, comparison: Comparison) -> list[str]:
    """Does alpha help on this model, and which way?"""
    words = [
        _headline(verdict),
        _way(verdict, comparison),
        *_alone(verdict),
        _baselines(verdict),
        _addition(verdict),
    ]
    return [text for text in words if text]


def _headline(verdict: Verdict) -> str:
    if verdict.helps:
        ends = " and ".join(verdict.alone)
        return (
            f"Alpha helps on this model: spending bits on linears of {ends} alpha beats both controls, and alpha makes "
            "a measured allocation better."
        )
    if verdict.alone:
        ends = " and ".join(verdict.alone)
        return (
            f"Alpha does not help on this model once sensitivity is measured. Alone it knows something: spending bits on "
            f"linears of {ends} alpha beats both controls. But it makes no measured allocation better."
        )
    if verdict.adds:
        return (
            "Alpha does not help on this model by the rule: it makes a measured allocation better, but spending bits by "
            "alpha alone does not beat both of its controls."
        )
    return (
        "Alpha does not help on this model: neither direction beats both of its controls, and alpha makes no measured "
        "allocation better."
    )


def _alone(verdict: Verdict) -> list[str]:
    sentences = []
    for direction in DIRECTIONS:
        pairs = [(direction, control) for control in CONTROLS[direction]]
        found = [verdict.changes[pair] for pair in pairs if pair in verdict.changes]
        if len(found) < 2:
            continue
        sentences.append(
            f"More bits for {direction} alpha: KL {change_text(found[0])} against the same formats shuffled within "
            f"type and block, {change_text(found[1])} against the same rule with alphas permuted within type."
        )
    return sentences


def _addition(verdict: Verdict) -> str:
    parts = [
        f"{change_text(verdict.changes[pair])} when added to `{ARMS[pair[1]].title}`"
        for pair in ADDITIONS
        if pair in verdict.changes
    ]
    return f"What alpha adds to a measurement, in KL: {'; '.join(parts)}."


def _way(verdict: Verdict, comparison: Comparison) -> str:
    change = verdict.changes.get(("low", "high"))
    if change is None:
        return ""
    low, high = (number(comparison.mean(name).value) for name in ("low", "high"))
    end = (
        "not decided"
        if verdict.better is None
        else f"of the two directions, protecting {verdict.better} alpha is the better"
    )
    return (
        f"Which way: {end}. Low alpha first costs a KL of {low}, high alpha first {high}; the former against the latter is "
        f"{change_text(change)}."
    )


def _baselines(verdict: Verdict) -> str:
    """The better direction against rules that know neither alpha nor any text."""
    change = verdict.changes.get(("low", "high"))
    if change is None:
        return ""
    direction: ArmName = "low" if change.value < 0 else "high"
    parts = [
        f"{change_text(verdict.changes[direction, other])} against {text}"
        for other, text in _BASELINES.items()
        if (direction, other) in verdict.changes
    ]
    return f"The KL of {direction} alpha first is {'; '.join(parts)}."


def change_text(found: Interval) -> str:
    """`−12.3 % [−15.0, −9.1]`, with a word where that may be chance."""
    value = f"{_percent(found.value)} %"
    if np.isnan(found.low):
        return f"{value}, no interval"
    if found.value == found.low == found.high == 0:
        return "exactly 0 (the same plans)"
    text = f"{value} [{_percent(found.low)}, {_percent(found.high)}]"
    return text if found.excludes_zero else f"{text} (not beyond chance)"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def rule_words() -> str:
    """The rule, as it was fixed before."""
    return (
        "The rule: alpha helps if, in one direction, it beats both controls, and if `output error × alpha` beats `output "
        "error` or `predicted loss, alpha as prior` beats `predicted loss`; a difference counts when its 95 % interval "
        "excludes zero. Each such test errs about once in forty. Shuffled formats spoil what the weights' variance knows as well; "
        "permuted alphas spoil alpha alone."
    )


def relation_words(found: Correlation) -> str:
    """One cell: the correlation with its interval."""
    if not found.exists:
        return "not defined"
    if np.isnan(found.low):
        return signed(found.value)
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"
