"""What a report consists of, before anybody decides whether it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Picture:
    """A drawn figure: `caption` says how to read it, `alt` what it is."""

    name: str
    alt: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Grid:
    """A table of text; `numeric` columns are set to the right, `code` columns may break anywhere."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()
    folded: bool = False
    """Shown behind a click where the medium can."""


@dataclass(frozen=True)
class Card:
    """One headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a plain string is a paragraph, `code` between backticks."""

    key: str
    title: str
    items: Sequence[str | Picture | Grid]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    answer: Sequence[str]
    """The first screen's sentences."""
    sections: Sequence[Section] = field(default_factory=tuple)

    def pictures(self) -> list[Picture]:
        """Every figure, in order."""
        return [
            item for section in self.sections for item in section.items if isinstance(item, Picture)
        ]
