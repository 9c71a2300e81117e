"""The bootstrap resamples whole units, is seeded, and agrees with plain counting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphaquant.evaluation.bootstrap import (
    bootstrap_score,
    resample_weights,
    weighted_mean,
    weighted_quantile,
    weighted_ratio,
)


@given(units=st.integers(1, 30), seed=st.integers(0, 3))
def test_every_resample_draws_as_many_units_as_there_are(units: int, seed: int) -> None:
    weights = resample_weights(units, resamples=20, seed=seed)
    assert weights.shape == (20, units)
    assert weights.sum(dim=1).tolist() == [units] * 20
    assert torch.equal(weights, resample_weights(units, resamples=20, seed=seed))


def test_the_standard_error_of_a_mean_is_the_textbook_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = bootstrap_score(
        weighted_mean(values), resample_weights(400), task="t", metric="m", model="x"
    )
    assert score.value == pytest.approx(values.mean().item())
    assert score.stderr == pytest.approx(values.std().item() / 20, rel=0.06)
    assert score.low == pytest.approx(score.value - 1.96 * score.stderr, abs=0.01)
    assert score.high == pytest.approx(score.value + 1.96 * score.stderr, abs=0.01)


def test_one_unit_has_a_value_but_no_interval() -> None:
    score = bootstrap_score(weighted_mean(torch.ones(1)), resample_weights(1), task="t", metric="m")
    assert score.value == 1
    assert all(math.isnan(number) for number in (score.stderr, score.low, score.high))


def test_a_number_that_overflows_has_no_interval() -> None:
    mean = weighted_mean(torch.tensor([1.0, math.inf, 2.0]))
    score = bootstrap_score(mean, resample_weights(3), task="t", metric="m")
    assert math.isinf(score.value)
    assert math.isnan(score.low)


@given(
    units=st.integers(1, 6),
    tokens=st.integers(1, 40),
    share=st.sampled_from([0.5, 0.9, 0.99, 0.999]),
    seed=st.integers(0, 100),
)
def test_the_weighted_quantile_is_that_of_the_repeated_windows(
    units: int, tokens: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 50, (units, tokens), generator=generator).double()
    weights = resample_weights(units, resamples=10, seed=seed)
    found = weighted_quantile(values, share)(weights)
    for row, quantile in zip(weights.long(), found, strict=True):
        drawn = values.repeat_interleave(row, dim=0).flatten()
        allowed = math.floor((1 - share) * drawn.numel() + 1e-9)
        assert quantile == drawn.sort(descending=True).values[allowed]
        assert (drawn > quantile).sum() <= allowed


def test_a_ratio_weighs_units_by_their_size() -> None:
    ratio = weighted_ratio(torch.tensor([1.0, 9.0]), torch.tensor([1.0, 3.0]))
    assert ratio(torch.ones(1, 2, dtype=torch.float64)).item() == 2.5
    assert ratio(torch.tensor([[2.0, 0.0]], dtype=torch.float64)).item() == 1
