"""The sections on alpha: its distribution, and what it has to do with sensitivity and rounding error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alphaquant.reporting.document import Grid, Section
from alphaquant.reporting.figures_alpha import alpha_by_depth, alpha_by_role, relation_figure
from alphaquant.reporting.figures_scores import budget_figure
from alphaquant.reporting.findings import ROUNDING, SENSITIVITY, Findings
from alphaquant.reporting.heatmaps import expert_maps
from alphaquant.reporting.linears import Relation
from alphaquant.reporting.notation import correlation_text, count, number
from alphaquant.reporting.sections import Items, add_picture
from alphaquant.reporting.style import MOST_POINTS
from alphaquant.reporting.tables import ReportInputs
from alphaquant.reporting.words_alpha import (
    budget_words,
    direction_words,
    method_words,
    prior_words,
    protect_words,
    scope_words,
)

_HOW_TO_READ = (
    "Left: every point is a linear; colours and markers are roles. Right: what is left of both rankings once {given} "
    "are accounted for; a cloud without a slope means alpha adds nothing to them. ρ is Spearman's rank correlation with "
    "its 95 % interval."
)


def alpha_section(inputs: ReportInputs, linears: pd.DataFrame) -> Section:
    """Alpha by role, by depth and over experts."""
    if inputs.alpha is None:
        text = "This run computed no alpha, so its distribution and its direction cannot be shown."
        return Section("alpha", "Alpha", [text])
    moe = bool(linears["expert"].notna().any())
    items: Items = [_alpha_words(inputs, linears)]
    add_picture(
        items,
        "alpha_by_role",
        "Distribution of alpha by role",
        "Points are linears (at most 300 are drawn per role), boxes hold the middle half, whiskers reach from 5 to 95 %. "
        "Red ticks mark the alpha of a random matrix of the same shape: near its tick a linear shows no structure, and "
        "ticks apart mean that raw alphas of these roles cannot be compared.",
        alpha_by_role(linears)
        if bool(np.isfinite(linears["alpha"].astype("float64")).any())
        else None,
    )
    add_picture(
        items,
        "alpha_by_depth",
        "Alpha by depth",
        "Lines join the alpha of each role from the first block to the last. "
        + ("For experts the line is their median and the band their middle half. " if moe else "")
        + "Routers are left out, as their shape sets their alpha apart.",
        alpha_by_depth(linears),
    )
    add_picture(
        items,
        "alpha_experts",
        "Alpha of every expert",
        "One panel per projection, one cell per expert. Rows that differ as a whole speak of depth, single cells of "
        "single experts.",
        expert_maps(linears, "alpha", "alpha (no unit)"),
    )
    if not moe:
        items.append("This model is dense, so there is no map over experts.")
    return Section("alpha", "Alpha", items)


def direction_section(inputs: ReportInputs, findings: Findings) -> Section:
    """Alpha against sensitivity and rounding error, in numbers, words and at equal budget."""
    title = "Alpha's direction in this model"
    if inputs.alpha is None:
        return Section("direction", title, ["Without alpha there is no direction to report."])
    items: Items = []
    main, rounding = (findings.relations.get(name) for name in (SENSITIVITY, ROUNDING))
    if main is not None:
        items += [
            *direction_words(main),
            protect_words(inputs, main),
            prior_words(inputs),
            scope_words(),
            method_words(main),
        ]
        _add_relation(items, "alpha_sensitivity", "Alpha against measured sensitivity", main)
    else:
        items += [_no_sensitivity(inputs), protect_words(inputs, None)]
    if rounding is not None:
        items += direction_words(rounding)
        _add_relation(items, "alpha_error", "Alpha against rounding error", rounding)
    else:
        items.append(
            "Without a plan and its table of errors alpha cannot be set against rounding error."
        )
    items += _equal_budget(findings)
    if findings.relations:
        items.append(_correlations(findings))
    return Section("direction", title, [item for item in items if item])


def _equal_budget(findings: Findings) -> Items:
    found = findings.budget
    if found is None:
        return [
            "An equal-budget comparison needs alpha, a plan, and losses at formats on both sides of its bits."
        ]
    items: Items = [*budget_words(found)]
    add_picture(
        items,
        "equal_budget",
        "Predicted loss of several orders of spending the same bits",
        f"{count(found.linears, 'measured linear')} start at {found.low}; the order decides which are raised to "
        f"{found.high} until {number(found.bits)} bits per weight are spent. Further left is better; the grey band holds "
        "95 % of random orders. Losses are predicted and added up, not measured on the whole model; the sum is ruled by "
        "the few largest, while rank correlations weigh all linears alike.",
        budget_figure(found),
    )
    return items


def _add_relation(items: Items, name: str, alt: str, relation: Relation) -> None:
    hidden = int((relation.data[relation.y] <= 0).sum())
    caption = _HOW_TO_READ.format(given=relation.given)
    if len(relation.data) > MOST_POINTS:
        caption += f" {MOST_POINTS:,} linears, chosen at random, are drawn; the ranks use all."
    if hidden:
        caption += f" {count(hidden, 'linear')} with a value of zero enter the ranks but not the logarithmic axis."
    add_picture(items, name, alt, caption, relation_figure(relation))


def _correlations(findings: Findings) -> Grid:
    rows = [
        [
            "z, distance to the null" if found.x == "z" else found.x,
            f"{found.thing} (predicted loss per weight)"
            if found.y == "loss_per_weight"
            else found.thing,
            f"{found.plain.count:,}",
            correlation_text(found.plain),
            correlation_text(found.partial),
            found.given,
        ]
        for found in findings.relations.values()
    ]
    header = ["ranked by", "against", "linears", "rank correlation", "partial", "given"]
    return Grid("Rank correlations with 95 % intervals", header, rows, frozenset({2, 3, 4}))


def _no_sensitivity(inputs: ReportInputs) -> str:
    policy = inputs.setting("allocation", "policy")
    why = f" (policy `{policy}` does not need it)" if policy else ""
    return f"Sensitivity was not measured in this run{why}, so what alpha says about it is not known here."


def _alpha_words(inputs: ReportInputs, linears: pd.DataFrame) -> str:
    values = linears["alpha"].astype("float64")
    finite = values[np.isfinite(values)]
    if finite.empty:
        return (
            "No linear of this model has a spectrum with a tail, so alpha is not defined for any."
        )
    low, middle, high = (float(v) for v in np.percentile(finite, [5, 50, 95]))
    text = (
        f"Alpha is the Hill exponent of the tail of a weight's spectrum: the smaller, the heavier the tail. Over "
        f"{count(len(finite), 'linear')} its median is {number(middle)}, and 90 % lie between {number(low)} and "
        f"{number(high)}."
    )
    if estimator := inputs.setting("alpha", "estimator"):
        text += f" Estimator `{estimator}`, tail fraction {inputs.setting('alpha', 'tail_fraction', 'not known')}."
    if lost := len(values.dropna()) - len(finite):
        text += (
            f" {count(lost, 'linear')} without a tail (rank-deficient or constant) are left out."
        )
    if "small" in linears.columns and (
        small := int(linears["small"].fillna(False).astype(bool).sum())
    ):
        text += (
            f" {count(small, 'linear')} are flagged as small: their alpha rests on few eigenvalues."
        )
    return text
