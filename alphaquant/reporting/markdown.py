"""A report as Markdown, with figures as files next to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alphaquant.reporting.document import Document, Grid, Picture, Section


def to_markdown(document: Document) -> str:
    """The whole report; figures are expected at `figures/<name>.png`."""
    parts = [f"# {plain(document.title)}"]
    if document.subtitle:
        parts.append(plain(document.subtitle))
    if document.cards:
        rows = [[card.label, card.value, card.note] for card in document.cards]
        parts.append(table(Grid("", ["measure", "value", "note"], rows, frozenset({1}))))
    parts += [plain(text) for text in document.answer]
    parts += [section_text(section) for section in document.sections]
    return "\n\n".join(parts) + "\n"


def section_text(section: Section) -> str:
    """One section, its heading first."""
    parts = [f"## {section.title}"]
    for item in section.items:
        if isinstance(item, Picture):
            parts.append(f"![{plain(item.alt)}](figures/{item.name}.png)")
            parts.append(f"*{plain(item.alt)}.* {plain(item.caption)}")
        elif isinstance(item, Grid):
            parts.append(f"**{plain(item.title)}**")
            parts.append(table(item))
        else:
            parts.append(plain(item))
    return "\n\n".join(parts)


def table(grid: Grid) -> str:
    """A table without its title."""
    marks = ["---:" if column in grid.numeric else "---" for column in range(len(grid.header))]
    lines = [_row(grid.header), _row(marks)]
    for row in grid.rows:
        cells = [
            _code(cell) if column in grid.code else plain(cell) for column, cell in enumerate(row)
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Text whose own marks stay text; what stands between backticks stays code."""
    pieces = re.split(r"(`[^`\n]*`)", " ".join(text.split()))
    return "".join(
        piece
        if piece.startswith("`") and len(piece) > 1
        else re.sub(r"([\\*_<>\[\]])", r"\\\1", piece)
        for piece in pieces
    )


def _code(text: str) -> str:
    one_line = " ".join(text.replace("`", "'").split())
    return f"`{one_line}`" if one_line and one_line != "–" else one_line
