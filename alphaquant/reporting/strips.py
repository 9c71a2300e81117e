"""A strip of points and a box for each role, one below the other."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from alphaquant.reporting.statistics import Floats
from alphaquant.reporting.style import role_style

MOST_POINTS = 300
"""Points drawn per role; the box counts all of them."""

_FEWEST_FOR_BOX = 5


def role_strips(axis: Axes, values: Floats, of_role: NDArray[np.str_], roles: list[str]) -> None:
    """Draw `values` in the row of their role: boxes hold the middle half, whiskers 5 to 95 %."""
    generator = np.random.default_rng(0)
    for place, role in enumerate(roles):
        mine = values[of_role == role]
        some = (
            mine if mine.size <= MOST_POINTS else generator.choice(mine, MOST_POINTS, replace=False)
        )
        jitter = generator.uniform(-0.2, 0.2, some.size) if some.size > 1 else np.zeros(some.size)
        colour, marker = role_style(role)
        size, opacity = (14, 0.5) if mine.size > 20 else (32, 0.85)
        axis.scatter(
            some, place + jitter, s=size, color=colour, marker=marker, alpha=opacity, linewidths=0
        )
        if mine.size >= _FEWEST_FOR_BOX:
            axis.boxplot(
                [mine],
                positions=[place],
                orientation="horizontal",
                widths=0.5,
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": "black", "linewidth": 1.6},
            )
    counts = [int((of_role == role).sum()) for role in roles]
    axis.set_yticks(
        range(len(roles)), [f"{role} ({n:,})" for role, n in zip(roles, counts, strict=True)]
    )
    axis.set_ylim(len(roles) - 0.45, -0.55)
    axis.grid(visible=False, axis="y")
