from __future__ import annotations

import numpy as np
import pytest

from alphaquant.evaluation.paired import Comparison


def hard_and_easy(
    shift: float, draws: int = 1, noise: float = 0.02, key: int = 0
) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Three seeds of 40 windows that differ a lot among themselves, and alike in every arm."""
    text = np.random.default_rng(0).lognormal(0, 1, 40)
    random = np.random.default_rng(key + 1)
    return [text * shift * (1 + random.normal(0, noise, (draws, 40))) for _ in range(3)]


def test_a_mean_is_that_of_the_values_whatever_the_number_of_draws() -> None:
    one, many = hard_and_easy(1.0), hard_and_easy(2.0, draws=7)
    comparison = Comparison({"one": one, "many": many})
    assert comparison.mean("one").value == pytest.approx(np.mean(one))
    assert comparison.mean("many").value == pytest.approx(np.mean(many))
    found = comparison.mean("one")
    assert found.low < found.value < found.high


def test_what_two_arms_share_cancels_in_their_difference() -> None:
    comparison = Comparison({"a": hard_and_easy(1.0, key=1), "b": hard_and_easy(1.03, key=2)})
    alone = comparison.mean("a")
    assert (alone.high - alone.low) / alone.value > 0.4
    change = comparison.change("a", "b")
    assert change.value == pytest.approx(1 / 1.03 - 1, abs=0.01)
    assert change.high - change.low < 0.03
    assert comparison.beats("a", "b")
    assert not comparison.beats("b", "a")


def test_an_arm_differs_from_itself_by_exactly_nothing() -> None:
    same = hard_and_easy(1.0)
    change = Comparison({"a": same, "b": same}).change("a", "b")
    assert (change.value, change.low, change.high) == (0, 0, 0)


def test_plans_that_scatter_widen_the_interval() -> None:
    lucky = [np.repeat(v, 5, axis=0) for v in hard_and_easy(1.0)]
    scattered = [v * np.array([[0.6], [0.8], [1.0], [1.2], [1.4]]) for v in lucky]
    comparison = Comparison({"base": hard_and_easy(1.0), "even": lucky, "scattered": scattered})
    even, wide = (comparison.change(name, "base") for name in ("even", "scattered"))
    assert even.high - even.low < 0.2 * (wide.high - wide.low)


def test_calibration_seeds_are_drawn_too() -> None:
    steady = hard_and_easy(1.0)
    moody = [values * factor for values, factor in zip(steady, (0.5, 1.0, 1.5), strict=True)]
    change = Comparison({"steady": steady, "moody": moody}).change("moody", "steady")
    assert change.low < -0.3
    assert change.high > 0.3


def test_equal_arms_are_told_apart_about_as_often_as_the_level_says() -> None:
    found = 0
    for trial in range(100):
        random = np.random.default_rng(trial)
        arms = {name: [random.normal(1, 0.1, (4, 60)) for _ in range(3)] for name in ("a", "b")}
        change = Comparison(arms, resamples=300, random_seed=trial).change("a", "b")
        found += change.excludes_zero
    assert found <= 12


def test_one_window_has_no_interval() -> None:
    comparison = Comparison({"a": [np.ones((1, 1))], "b": [np.full((1, 1), 2.0)]})
    assert comparison.change("a", "b").value == -0.5
    assert np.isnan(comparison.change("a", "b").low)
    assert not comparison.beats("a", "b")


def test_arms_of_different_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="different seeds or windows"):
        Comparison({"a": [np.ones((1, 3))], "b": [np.ones((1, 4))]})
