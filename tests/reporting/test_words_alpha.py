"""The sentences about alpha follow the numbers, in either direction, and claim no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from alphaquant.reporting.budget import HIGH, LOW, compare_orders
from alphaquant.reporting.document import Grid
from alphaquant.reporting.linears import Relation, linear_table, relate
from alphaquant.reporting.sections_plan import granularity_items
from alphaquant.reporting.tables import ReportInputs, tidy
from alphaquant.reporting.words_alpha import (
    budget_verdict,
    direction_words,
    method_words,
    prior_words,
    protect_words,
)


def relation_with(run: ReportInputs, slope: float, role_slope: float = 0.0) -> Relation:
    """Alpha against a sensitivity that follows it by `slope` within roles, `role_slope` between."""
    table = linear_table(tidy(run))
    noise = np.random.default_rng(0).normal(size=(2, len(table)))
    step = table["role"].map({role: n for n, role in enumerate(sorted(set(table["role"])))})
    table["alpha"] = 4 + noise[0] + 5 * step
    table["loss_per_weight"] = np.exp(slope * noise[0] + role_slope * step + 0.5 * noise[1])
    relation = relate(table, "loss_per_weight", "", thing="sensitivity")
    assert relation is not None
    return relation


@pytest.mark.parametrize(("slope", "word"), [(1.0, "higher"), (-1.0, "lower")])
def test_the_direction_is_named_as_it_is(moe_run: ReportInputs, slope: float, word: str) -> None:
    first, second = direction_words(relation_with(moe_run, slope, slope))
    assert f"In this model higher alpha goes with {word} sensitivity" in first
    assert "in the same direction" in second


def test_no_link_is_said_to_be_none(moe_run: ReportInputs) -> None:
    first, second = direction_words(relation_with(moe_run, 0.0))
    assert "does not rank the linears by their sensitivity with any certainty" in first
    assert "the interval includes zero" in first
    assert "the interval includes zero" in second


def test_a_link_that_turns_around_given_the_controls_is_said_to(moe_run: ReportInputs) -> None:
    _, second = direction_words(relation_with(moe_run, -1.0, 5.0))
    assert "the direction is the opposite" in second


def test_too_few_linears_decide_nothing(make_run: object, dense_run: ReportInputs) -> None:
    table = linear_table(tidy(dense_run)).head(3)
    relation = relate(table, "loss_per_weight", "", thing="sensitivity")
    assert relation is not None
    first, second = direction_words(relation)
    assert "that few linears decide nothing" in first
    assert "nothing can be said" in second


@pytest.mark.parametrize(
    ("policy", "protect", "slope", "words"),
    [
        ("budget", "high_alpha", 1.0, "does not use alpha"),
        ("ratio", "high_alpha", 1.0, "high alpha more bits (`protect: high_alpha`), which this measurement supports"),
        ("ratio", "low_alpha", 1.0, "low alpha more bits (`protect: low_alpha`), which this measurement contradicts"),
        ("alpha", "low_alpha", -1.0, "supports"),
        ("alpha", "high_alpha", 0.0, "neither supports nor contradicts"),
        ("alpha", "measured", 1.0, "took the direction of alpha from this measurement"),
    ],
)  # fmt: skip
def test_the_plans_direction_is_held_against_the_measurement(
    moe_run: ReportInputs, policy: str, protect: str, slope: float, words: str
) -> None:
    run = replace(moe_run, config={"allocation": {"policy": policy, "protect": protect}})
    assert words in protect_words(run, relation_with(run, slope, slope))


def test_a_plan_from_alpha_without_a_measurement_is_not_judged(moe_run: ReportInputs) -> None:
    run = replace(moe_run, config={"allocation": {"policy": "ratio"}})
    assert "no measurement to judge that by" in protect_words(run, None)
    assert protect_words(replace(run, config={}), None) == ""


def test_the_method_behind_the_intervals_is_named(
    moe_run: ReportInputs, dense_run: ReportInputs
) -> None:
    assert "resampling whole groups" in method_words(relation_with(moe_run, 1.0))
    assert "Fisher's" in method_words(relation_with(dense_run, 1.0))


@pytest.mark.parametrize(("slope", "better"), [(1.0, "high"), (-1.0, "low")])
def test_the_equal_budget_verdict_names_the_better_direction(
    moe_run: ReportInputs, slope: float, better: str
) -> None:
    run = tidy(moe_run)
    assert run.sensitivity is not None
    table = linear_table(run)
    alpha = dict(zip(table["linear"], table["alpha"], strict=True))
    size = dict(zip(table["linear"], table["size"], strict=True))
    losses = run.sensitivity.copy()
    effect = losses["linear"].map(alpha).astype(float) * slope
    losses["predicted_loss"] = (
        np.exp(effect) * losses["linear"].map(size) * 4.0 ** -losses["bits_per_weight"]
    )
    found = compare_orders(table, losses)
    assert found is not None
    assert f"protecting {better} alpha is the better direction and beats chance" in budget_verdict(
        found
    )


def test_a_direction_within_chance_is_not_called_a_win(moe_run: ReportInputs) -> None:
    run = tidy(moe_run)
    assert isinstance(run.sensitivity, pd.DataFrame)
    found = compare_orders(linear_table(run), run.sensitivity)
    assert found is not None
    middle = float(np.median(found.random))
    even = replace(found, losses={**found.losses, HIGH: middle, LOW: middle * 1.01})
    assert "within the range of chance" in budget_verdict(even)
    worse = replace(found, losses={**found.losses, HIGH: middle * 9, LOW: middle * 9})
    assert "both directions of alpha are worse than chance" in budget_verdict(worse)


def _with_prior(**changes: object) -> ReportInputs:
    prior = {"share": 0.04, "without": 0.5, "with_alpha": 0.4, "noise": 0.02, "precision": 0.5}
    return ReportInputs(model="m", allocation={"alpha_prior": {**prior, "used": True, **changes}})


def test_the_prior_is_told_with_what_it_rests_on() -> None:
    words = prior_words(_with_prior())
    assert "a weight of 4.0 %" in words
    assert "variance of 0.500" in words
    assert words.endswith("The plan used it.")
    assert prior_words(_with_prior(used=False)).endswith("The plan did not use it (`alpha_prior`).")
    assert "Alpha adds nothing here" in prior_words(_with_prior(precision=0.0, share=0.0))
    assert prior_words(ReportInputs(model="m")) == ""


def test_the_price_of_each_granularity_is_set_against_the_finest() -> None:
    prices = [
        {"granularity": g, "bits_per_weight": 3.99, "predicted_loss": loss, "chosen": g == "fused"}
        for g, loss in (("linear", 0.02), ("expert", 0.03), ("fused", 0.05))
    ]
    *_, grid = granularity_items(ReportInputs(model="m", allocation={"granularities": prices}))
    assert isinstance(grid, Grid)
    assert [row[0] for row in grid.rows] == ["linear", "expert", "fused (this plan)"]
    assert [row[-1] for row in grid.rows] == ["1.00×", "1.50×", "2.50×"]
    assert granularity_items(ReportInputs(model="m")) == []
