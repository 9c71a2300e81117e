"""Sizes for people: decimal bytes, the unit that limits are written in."""

from __future__ import annotations

import math

_UNITS = ("B", "kB", "MB", "GB", "TB")


def unit_of(size: float) -> tuple[float, str]:
    """The unit that suits so many bytes, in bytes, and its name."""
    power = 0
    while power + 1 < len(_UNITS) and size >= 1000.0 ** (power + 1):
        power += 1
    return 1000.0**power, _UNITS[power]


def size_text(size: float, *, least: bool = False) -> str:
    """Bytes in three digits or more, such as `3.96 GB`; `least` rounds up, for what somebody has to have."""
    unit, name = unit_of(abs(size))
    value = size / unit
    decimals = 0 if unit == 1 else max(0, 2 - int(math.log10(abs(value))))
    if least:
        value = math.ceil(value * 10**decimals) / 10**decimals
    return f"{value:,.{decimals}f} {name}"
