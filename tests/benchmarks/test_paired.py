"""Ratios are of means over the same windows."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.rivals.paired import geometric_mean, kl_ratio


def test_pairing_takes_out_how_hard_windows_are() -> None:
    random = torch.Generator().manual_seed(0)
    hard = torch.rand(40, generator=random).mul(5).exp()
    noise = 1 + 0.05 * torch.randn(40, generator=random)
    base, ours = hard.tolist(), (0.8 * hard * noise).tolist()
    found = kl_ratio(ours, base)
    assert found.value == pytest.approx(sum(ours) / sum(base))
    assert found.low < found.value < found.high < 0.9
    unpaired = kl_ratio(ours[::-1], base)
    assert unpaired.high - unpaired.low > 5 * (found.high - found.low)


def test_a_model_against_itself_is_one() -> None:
    found = kl_ratio([0.1, 0.2, 0.4], [0.1, 0.2, 0.4])
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_other_windows_and_single_windows_say_so() -> None:
    with pytest.raises(ValueError, match="2 windows cannot be paired with 3"):
        kl_ratio([1.0, 2.0], [1.0, 2.0, 3.0])
    assert math.isnan(kl_ratio([1.0], [2.0]).low)


def test_the_mean_of_ratios_is_geometric_and_leaves_unknown_ones_out() -> None:
    assert geometric_mean([0.5, 2.0, math.nan]) == pytest.approx(1)
    assert math.isnan(geometric_mean([]))
