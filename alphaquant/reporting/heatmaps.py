"""Heat maps over blocks: one panel per projection with experts along it, or roles against blocks."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from alphaquant.reporting.statistics import Floats
from alphaquant.reporting.style import SEQUENTIAL, even_ticks, new_figure
from alphaquant.reporting.tables import role_order

Colour = tuple[float, float, float, float]

_BLOCKS_PER_ROW = 24


def expert_maps(linears: pd.DataFrame, column: str, label: str) -> Figure | None:
    """`column` of every expert: a panel per projection, blocks down, experts across; None without experts.

    Colours run from the 2nd to the 98th percentile of all panels, so that one outlier hides nothing.
    """
    data = linears[linears["expert"].notna() & np.isfinite(linears[column].astype("float64"))]
    if data.empty:
        return None
    low, high = np.percentile(data[column].astype("float64"), [2, 98])
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    figure, axes, image = _expert_panels(
        data, column, mpl.colormaps[SEQUENTIAL], Normalize(float(low), float(high))
    )
    _colour_bar(figure, image, axes, label, extend="both")
    return figure


def expert_schemes(linears: pd.DataFrame) -> Figure | None:
    """The format of every expert, as `expert_maps` lays it out; None unless a block mixes them."""
    data = linears[linears["expert"].notna() & linears["scheme"].notna()]
    if data.empty or bool((data.groupby(["block", "role"])["scheme"].nunique() == 1).all()):
        return None
    names = schemes_by_bits(data)
    colours = scheme_colours(names)
    data = data.assign(place=data["scheme"].map({name: place for place, name in enumerate(names)}))
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    figure, _, _ = _expert_panels(
        data, "place", ListedColormap([colours[name] for name in names]), norm
    )
    handles = [Patch(facecolor=colours[name], edgecolor="#555555", label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 6))
    return figure


def role_map(linears: pd.DataFrame, label: str) -> Figure:
    """Bits per weight of every role in every block, written into the cells; long models wrap.

    A cell with several linears (experts) holds their mean by weights.
    """
    data = linears[linears["block"].notna() & linears["bits_per_weight"].notna()]
    data = data.assign(bits=data["bits_per_weight"] * data["size"])
    sums = data.groupby(["block", "role"])[["bits", "size"]].sum()
    grid = (sums["bits"] / sums["size"]).unstack("block")
    grid = grid.loc[role_order(grid.index)]
    blocks = [int(block) for block in grid.columns]
    rows = [
        blocks[start : start + _BLOCKS_PER_ROW] for start in range(0, len(blocks), _BLOCKS_PER_ROW)
    ]
    figure = new_figure(0.9 + len(rows) * (0.33 * len(grid) + 0.45))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    widest = len(rows[0])
    for axis, members in zip(axes, rows, strict=True):
        values = np.full((len(grid), widest), np.nan)
        values[:, : len(members)] = grid[members].to_numpy(dtype="float64")
        axis.imshow(values, aspect="auto", cmap=SEQUENTIAL, norm=LogNorm(2, 16))
        _write(axis, values, small=widest > 12)
        axis.set_yticks(range(len(grid)), list(grid.index))
        axis.set_xticks(range(len(members)), [str(block) for block in members])
        _bare(axis)
        axis.set_xticks(np.arange(0.5, widest), minor=True)
        axis.set_yticks(np.arange(0.5, len(grid)), minor=True)
        axis.grid(visible=True, which="minor", color="white", linewidth=1.5)
    axes[-1].set_xlabel("block")
    bar = _colour_bar(figure, ScalarMappable(LogNorm(2, 16), SEQUENTIAL), list(axes), label)
    bar.set_ticks([2, 3, 4, 6, 8, 16], labels=["2", "3", "4", "6", "8", "16"])
    bar.minorticks_off()
    return figure


def schemes_by_bits(linears: pd.DataFrame) -> list[str]:
    """The plan's schemes, fewest bits first."""
    bits = linears.groupby("scheme")["bits_per_weight"].mean()
    return [str(name) for name in bits.sort_index().sort_values(kind="stable").index]


def scheme_colours(names: list[str]) -> dict[str, Colour]:
    """A colour per scheme along the sequential map: the lighter, the more bits."""
    places = np.linspace(0.08, 0.95, len(names)) if len(names) > 1 else np.array([0.35])
    return {
        name: mpl.colormaps[SEQUENTIAL](place) for name, place in zip(names, places, strict=True)
    }


def text_colour(face: Colour) -> str:
    """Black or white, whichever reads better on `face`."""
    return "black" if 0.299 * face[0] + 0.587 * face[1] + 0.114 * face[2] > 0.5 else "white"


def _expert_panels(
    data: pd.DataFrame, column: str, colours: Colormap, norm: Normalize
) -> tuple[Figure, list[Axes], AxesImage]:
    roles = role_order(data["role"])
    blocks = sorted({int(block) for block in data["block"]})
    experts = int(data["expert"].max()) + 1
    height = float(np.clip(0.2 * len(blocks), 0.8, 3.0))
    figure = new_figure(0.9 + len(roles) * (height + 0.35))
    axes = figure.subplots(len(roles), 1, sharex=True, squeeze=False)[:, 0]
    place = {block: row for row, block in enumerate(blocks)}
    for axis, role in zip(axes, roles, strict=True):
        part = data[data["role"] == role]
        values: Floats = np.full((len(blocks), experts), np.nan)
        rows = part["block"].map(place).to_numpy(dtype=np.intp)
        values[rows, part["expert"].to_numpy(dtype=np.intp)] = part[column].to_numpy(
            dtype="float64"
        )
        image = axis.imshow(values, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
        axis.set_title(role)
        axis.set_ylabel("block")
        rows_shown = even_ticks(len(blocks))
        axis.set_yticks(rows_shown, [str(blocks[row]) for row in rows_shown])
        _bare(axis)
    axes[-1].set_xlabel("expert")
    axes[-1].set_xticks(even_ticks(experts))
    return figure, list(axes), image


def _write(axis: Axes, values: Floats, *, small: bool) -> None:
    colours, norm = mpl.colormaps[SEQUENTIAL], LogNorm(2, 16)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axis.text(
                column,
                row,
                f"{value:.3f}".rstrip("0").rstrip("."),
                ha="center",
                va="center",
                fontsize=6.5 if small else 9,
                color=text_colour(colours(float(norm(value)))),
            )


def _bare(axis: Axes) -> None:
    axis.grid(visible=False)
    axis.tick_params(which="both", length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _colour_bar(
    figure: Figure, colours: ScalarMappable, axes: list[Axes], label: str, extend: str = "neither"
) -> Colorbar:
    """A colour bar of one width, whatever the height of the figure."""
    aspect = max(5.0, 5 * figure.get_figheight())
    return figure.colorbar(
        colours, ax=axes, label=label, extend=extend, extendfrac=0.02, aspect=aspect, pad=0.015
    )
