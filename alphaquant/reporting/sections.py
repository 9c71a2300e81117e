"""What all sections use: collecting items, drawing a figure into one, writing a linear's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from alphaquant.reporting.document import Grid, Picture
from alphaquant.reporting.style import png

Items = list[str | Picture | Grid]


def add_picture(items: Items, name: str, alt: str, caption: str, figure: Figure | None) -> None:
    """Render the figure to PNG at once, so that only one is in memory; None adds nothing."""
    if figure is not None:
        items.append(Picture(name, alt, caption, png(figure)))


def identity_cells(row: Mapping[Any, Any]) -> list[str]:
    """Name, role and block of a linear, as table cells."""
    return [str(row["linear"]), str(row["role"]), whole(row["block"])]


def whole(value: Any) -> str:
    """A nullable whole number as text."""
    return "–" if pd.isna(value) else str(int(value))
