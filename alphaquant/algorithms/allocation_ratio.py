"""Ratio: the seed's rule. Along alpha, the most sensitive stay bf16, the least get mxfp4, the rest mxfp8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from alphaquant.algorithms.allocation_direction import alpha_rows, filled, protect_sign
from alphaquant.algorithms.allocation_groups import BF16, LOWEST, MIDDLE, Group
from alphaquant.config import AllocationConfig
from alphaquant.formats.scheme import Scheme


def ratio_schemes(
    groups: Sequence[Group],
    config: AllocationConfig,
    alpha: pd.DataFrame | None,
    sensitivity: pd.DataFrame | None,
) -> dict[str, Scheme]:
    """Schemes by linear for groups ordered by their size-weighted mean alpha.

    Shares are of groups (of linears, at granularity linear), rounded to the nearest count, half up;
    equal alphas keep the order of the model.
    """
    specs = [spec for group in groups for spec in group.specs]
    names = [spec.name for spec in specs]
    sizes = pd.Series([spec.size for spec in specs], index=names)
    alphas = alpha_rows(alpha, names)["alpha"]
    sign = protect_sign(config, alphas, sizes, sensitivity)
    weighted = dict(zip(names, filled(alphas) * sizes, strict=True))

    def sensitivity_of(group: Group) -> float:
        return sign * sum(weighted[spec.name] for spec in group.specs) / group.size

    ordered = sorted(groups, key=sensitivity_of, reverse=True)
    high, low = ratio_counts(len(groups), config.bf16_ratio, config.mxfp4_ratio)
    schemes = [BF16] * high + [MIDDLE] * (len(groups) - high - low) + [LOWEST] * low
    return {
        spec.name: scheme
        for group, scheme in zip(ordered, schemes, strict=True)
        for spec in group.specs
    }


def ratio_counts(count: int, bf16_ratio: float, mxfp4_ratio: float) -> tuple[int, int]:
    """How many of `count` groups stay bf16 and how many get mxfp4; bf16 wins a contested one."""
    high = math.floor(bf16_ratio * count + 0.5)
    return high, min(math.floor(mxfp4_ratio * count + 0.5), count - high)
