"""The equal-budget comparison spends the same bits in every order and finds the right direction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphaquant.reporting.budget import HIGH, LOW, MEASURED, compare_orders


def small_case(
    alpha: list[float], gain: list[float], bits: float = 6.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Equal linears with losses 10 at 4 bits and 10 - gain at 8 bits."""
    names = [f"l{place}" for place in range(len(alpha))]
    linears = pd.DataFrame({"linear": names, "role": "q", "alpha": alpha, "size": 100})
    linears["bits_per_weight"] = bits
    low = pd.DataFrame({"linear": names, "format": "int4", "bits_per_weight": 4.0})
    high = low.assign(format="int8", bits_per_weight=8.0, predicted_loss=10 - np.array(gain))
    return linears, pd.concat([low.assign(predicted_loss=10.0), high], ignore_index=True)


def test_half_the_linears_are_raised_in_the_order_of_alpha() -> None:
    found = compare_orders(*small_case([4, 3, 2, 1], [8, 4, 2, 1]))
    assert found is not None
    assert (found.low, found.high) == ("int4", "int8")
    assert found.losses[HIGH] == pytest.approx(40 - 12)
    assert found.losses[LOW] == pytest.approx(40 - 3)


def test_the_last_linear_counts_in_part() -> None:
    found = compare_orders(*small_case([4, 3, 2, 1], [8, 4, 2, 1], bits=5.5))
    assert found is not None
    assert found.losses[HIGH] == pytest.approx(40 - 8 - 0.5 * 4)


def test_turning_alpha_around_swaps_the_two_directions() -> None:
    forward = compare_orders(*small_case([4, 3, 2, 1], [8, 4, 2, 1]))
    backward = compare_orders(*small_case([1, 2, 3, 4], [8, 4, 2, 1]))
    assert forward is not None
    assert backward is not None
    assert forward.losses[HIGH] == pytest.approx(backward.losses[LOW])


def test_no_order_beats_the_most_loss_saved_per_bit() -> None:
    generator = np.random.default_rng(0)
    found = compare_orders(
        *small_case(list(generator.normal(3, 1, 30)), list(generator.gamma(1, 2, 30)))
    )
    assert found is not None
    assert found.losses[MEASURED] <= min(found.losses.values()) + 1e-9
    assert found.losses[MEASURED] <= found.random.min() + 1e-9


def test_a_budget_outside_the_measured_formats_gives_no_comparison() -> None:
    assert compare_orders(*small_case([4, 3, 2, 1], [8, 4, 2, 1], bits=16.0)) is None
    assert compare_orders(*small_case([4, 3, 2, 1], [8, 4, 2, 1], bits=3.0)) is None


def test_linears_that_were_not_measured_are_left_out() -> None:
    linears, losses = small_case([4, 3, 2, 1], [8, 4, 2, 1])
    found = compare_orders(linears, losses[losses["linear"] != "l3"])
    assert found is not None
    assert found.linears == 3


def test_linears_for_which_the_higher_format_costs_nothing_do_not_divide_by_zero() -> None:
    linears, losses = small_case([5, 4, 3, 2, 1], [8, 4, 2, 1, 1])
    losses.loc[losses["linear"] == "l0", "bits_per_weight"] = 6.0
    found = compare_orders(linears, losses)
    assert found is not None
    assert found.linears == 4
