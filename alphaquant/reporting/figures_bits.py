"""Figure of the formats that each role got, as shares of its weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alphaquant.reporting.heatmaps import scheme_colours, schemes_by_bits, text_colour
from alphaquant.reporting.style import new_figure
from alphaquant.reporting.tables import role_order


def format_shares(linears: pd.DataFrame) -> Figure:
    """Stacked bars: share of each role's weights per scheme, all roles first; the lighter, the more bits."""
    data = linears[linears["scheme"].notna()]
    names = schemes_by_bits(data)
    colours = scheme_colours(names)
    sizes = data.pivot_table(
        index="role", columns="scheme", values="size", aggfunc="sum", fill_value=0
    )
    sizes = sizes.loc[role_order(sizes.index), names]
    total = sizes.sum().rename("all")
    sizes = pd.concat([total.to_frame().T, sizes])
    shares = sizes.div(sizes.sum(axis=1), axis=0) * 100
    figure = new_figure(0.36 * len(shares) + 1.5)
    axis = figure.subplots()
    left = np.zeros(len(shares))
    # a gap sets the summary apart from the roles it sums up
    places = np.arange(len(shares)) + np.where(np.arange(len(shares)) > 0, 0.35, 0.0)
    for name in names:
        widths = shares[name].to_numpy(dtype="float64")
        axis.barh(
            places,
            widths,
            left=left,
            height=0.74,
            color=colours[name],
            edgecolor="white",
            label=name,
        )
        for place, start, width in zip(places, left, widths, strict=True):
            if width >= 6:
                axis.text(
                    start + width / 2,
                    place,
                    f"{width:.0f} %",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=text_colour(colours[name]),
                )
        left += widths
    axis.set_yticks(places, [str(role) for role in shares.index])
    axis.set_ylim(places[-1] + 0.55, -0.55)
    axis.set_xlim(0, 100)
    axis.grid(visible=False)
    axis.set_xlabel("share of weights (%)")
    figure.legend(loc="outside lower center", ncols=min(len(names), 5))
    return figure
