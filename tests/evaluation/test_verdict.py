from __future__ import annotations

import numpy as np
import pytest

from alphaquant.algorithms.arms import ARM_NAMES
from alphaquant.evaluation.paired import Comparison
from alphaquant.evaluation.verdict import Verdict, judge
from alphaquant.reporting.words_experiment import answer_words, change_text


def measured(**levels: float) -> Comparison:
    """Arms of KL 1, but for those named; 2 seeds of 30 windows."""
    text = np.random.default_rng(0).lognormal(0, 0.5, 30)
    return Comparison(
        {
            name: [
                levels.get(name, 1.0)
                * text
                * (1 + 0.01 * np.random.default_rng((place, seed)).normal(size=(2, 30)))
                for seed in range(2)
            ]
            for place, name in enumerate(ARM_NAMES)
        }
    )


def both(**levels: float) -> tuple[Verdict, str]:
    comparison = measured(**levels)
    verdict = judge(comparison)
    return verdict, " ".join(answer_words(verdict, comparison))


def test_alpha_helps_when_it_beats_its_controls_and_adds_to_a_measurement() -> None:
    verdict, words = both(low=0.8, fisher_prior=0.5, fisher=0.6)
    assert verdict.helps
    assert verdict.alone == ("low",)
    assert verdict.adds == (("fisher_prior", "fisher"),)
    assert verdict.better == "low"
    assert words.startswith("Alpha helps on this model: spending bits on linears of low alpha")


def test_alpha_alone_is_not_enough() -> None:
    verdict, words = both(high=0.8)
    assert not verdict.helps
    assert verdict.alone == ("high",)
    assert "once sensitivity is measured" in words
    assert verdict.better == "high"


@pytest.mark.parametrize("control", ["low_shuffled", "low_permuted"])
def test_one_control_that_does_as_well_is_enough_to_refute(control: str) -> None:
    verdict, words = both(low=0.8, local_alpha=0.7, **{control: 0.8})
    assert verdict.alone == ()
    assert verdict.adds == (("local_alpha", "local"),)
    assert not verdict.helps
    assert "does not beat both of its controls" in words


def test_nothing_is_claimed_of_equal_arms() -> None:
    verdict, words = both()
    assert not verdict.helps
    assert verdict.better is None
    assert "Which way: not decided" in words
    assert "(not beyond chance)" in words


def test_the_same_plans_are_called_the_same() -> None:
    same = [np.ones((1, 9))]
    comparison = Comparison({"fisher": same, "fisher_prior": same})
    change = comparison.change("fisher_prior", "fisher")
    assert change_text(change) == "exactly 0 (the same plans)"
    verdict = judge(comparison)
    assert list(verdict.changes) == [("fisher_prior", "fisher")]
    assert not verdict.helps
