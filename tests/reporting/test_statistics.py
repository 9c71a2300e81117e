"""Rank correlations agree with scipy and textbook formulas, and their intervals mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from alphaquant.reporting.statistics import (
    indicator_columns,
    partial_residuals,
    rank_correlation,
    ranks,
)

few_values = st.lists(st.integers(-5, 5), min_size=4, max_size=40)


@given(few_values)
def test_ranks_share_ties_as_scipy_does(values: list[int]) -> None:
    np.testing.assert_allclose(ranks(values), rankdata(values))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=4, max_size=29))
def test_plain_correlation_is_spearmans_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    found = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert not found.exists
    else:
        assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)


def test_partial_correlation_with_one_control_is_the_textbook_formula() -> None:
    generator = np.random.default_rng(1)
    z = generator.normal(size=80)
    x, y = z + generator.normal(size=80), z - 0.5 * generator.normal(size=80)
    xy, xz, yz = (spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    found = rank_correlation(x, y, controls=rankdata(z)[:, None])
    assert found.value == pytest.approx(expected, abs=1e-9)


def test_a_common_cause_disappears_once_it_is_controlled() -> None:
    generator = np.random.default_rng(2)
    role = generator.integers(0, 4, 400)
    x, y = role + 0.4 * generator.normal(size=400), role + 0.4 * generator.normal(size=400)
    plain = rank_correlation(x, y)
    partial = rank_correlation(x, y, controls=indicator_columns(role))
    assert plain.value > 0.7
    assert plain.excludes_zero
    assert abs(partial.value) < 0.15
    assert not partial.excludes_zero


def test_a_correlation_within_groups_survives_an_opposite_one_between_them() -> None:
    generator = np.random.default_rng(3)
    role = generator.integers(0, 3, 300)
    within = generator.normal(size=300)
    x, y = 5 * role + within, -5 * role + within
    assert rank_correlation(x, y).value < -0.5
    assert rank_correlation(x, y, controls=indicator_columns(role)).value > 0.9


def test_monotone_changes_of_either_variable_change_nothing() -> None:
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=50), generator.normal(size=50)
    assert rank_correlation(np.exp(x), y**3) == rank_correlation(x, y)


def test_redundant_controls_change_nothing() -> None:
    generator = np.random.default_rng(5)
    x, y, z = generator.normal(size=(3, 60))
    once = rank_correlation(x, y, controls=z[:, None])
    thrice = rank_correlation(x, y, controls=np.column_stack([z, 2 * z + 1, np.ones(60)]))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.low == pytest.approx(once.low)


def test_controls_that_fix_the_order_leave_nothing_to_correlate() -> None:
    x = np.arange(20.0)
    found = rank_correlation(x, x[::-1], controls=x[:, None])
    assert not found.exists
    assert found.method == "none"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_pairs_or_fewer_give_no_value(count: int) -> None:
    assert not rank_correlation(np.arange(count), np.arange(count)).exists


def test_as_many_controls_as_freedom_give_a_value_without_interval() -> None:
    generator = np.random.default_rng(6)
    found = rank_correlation(*generator.normal(size=(2, 5)), controls=generator.normal(size=(5, 2)))
    assert found.exists
    assert np.isnan(found.low)
    assert not found.excludes_zero


def test_pairs_that_are_not_finite_are_left_out() -> None:
    x = np.array([1.0, 2.0, np.inf, 4.0, 5.0, np.nan])
    y = np.array([1.0, 3.0, 2.0, np.nan, 9.0, 1.0])
    assert rank_correlation(x, y).count == 3


@pytest.mark.parametrize(
    ("count", "rho", "controls"), [(14, 0.0, 0), (25, 0.6, 4), (60, 0.5, 0), (60, 0.0, 8)]
)
def test_intervals_cover_the_truth_about_as_often_as_they_claim(
    count: int, rho: float, controls: int
) -> None:
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's rho of a bivariate normal
    mix = np.linalg.cholesky([[1, rho], [rho, 1]])
    hits = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        x, y = mix @ generator.normal(size=(2, count))
        design = generator.normal(size=(count, controls)) if controls else None
        found = rank_correlation(x, y, controls=design)
        hits += found.low <= truth <= found.high
    assert 88 <= hits <= 100


def test_copies_of_a_pair_do_not_narrow_the_interval_when_they_are_one_group() -> None:
    generator = np.random.default_rng(7)
    x = generator.normal(size=60)
    y = x + generator.normal(size=60)
    single = rank_correlation(x, y)
    copied = np.repeat(np.arange(60), 5)
    grouped = rank_correlation(x[copied], y[copied], groups=copied)
    naive = rank_correlation(x[copied], y[copied])
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.05)
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


def test_few_groups_fall_back_to_a_formula() -> None:
    generator = np.random.default_rng(8)
    x, y = generator.normal(size=(2, 60))
    assert rank_correlation(x, y, groups=np.arange(60) // 6).method == "fisher"
    assert rank_correlation(x, y, groups=np.arange(60) // 2).method == "bootstrap"


def test_a_perfect_rank_correlation_has_an_interval_at_its_end() -> None:
    found = rank_correlation(np.arange(40.0), np.arange(40.0) ** 3)
    assert found.value == pytest.approx(1)
    assert 0.99 < found.low <= found.high <= 1


def test_the_same_data_give_the_same_interval() -> None:
    x, y = np.random.default_rng(9).normal(size=(2, 100))
    assert rank_correlation(x, y) == rank_correlation(x, y)


def test_residual_ranks_correlate_as_the_partial_correlation_says() -> None:
    generator = np.random.default_rng(10)
    z = generator.normal(size=(70, 3))
    x, y = z @ [1, 0, 2] + generator.normal(size=70), z @ [0, 1, 1] + generator.normal(size=70)
    left, right = partial_residuals(x, z), partial_residuals(y, z)
    assert np.abs(z.T @ left).max() < 1e-9
    expected = rank_correlation(x, y, controls=z).value
    assert np.corrcoef(left, right)[0, 1] == pytest.approx(expected)
