"""How the rate of a short training runs: it rises over the first tenth of the steps, then falls to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

_WARMUP = 0.1  # share of the steps


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Share of the rate by step, counted from 0."""
    warmup = max(1, round(_WARMUP * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
