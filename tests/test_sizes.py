"""Sizes as people read them."""

from __future__ import annotations

import pytest

from alphaquant.sizes import size_text, unit_of


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (17.0, "17 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (13_140_000, "13.1 MB"),
        (412_000_000, "412 MB"),
        (4_000_000_000, "4.00 GB"),
        (2**32, "4.29 GB"),
        (-1_500_000, "-1.50 MB"),
        (5e15, "5,000 TB"),
    ],
)
def test_sizes_are_decimal_and_have_three_digits(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("size", [4_000_000_001, 3_994_000_001, 17, 123_400_001])
def test_what_somebody_must_have_is_never_told_smaller_than_it_is(size: int) -> None:
    amount, unit = size_text(size, least=True).split()
    told = float(amount) * next(u for u, name in map(unit_of, (1, 1e3, 1e6, 1e9)) if name == unit)
    assert size <= told < 1.01 * size + 1
