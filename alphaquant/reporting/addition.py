"""Sections that a finished report gets: what was not known when it was made, or changes from one computation to the next."""

from __future__ import annotations

from pathlib import Path

from alphaquant.reporting.document import Document, Section
from alphaquant.reporting.markdown import section_text
from alphaquant.reporting.page import section_html

PAGE, WORDS = "report.html", "report.md"


def add_to_report(folder: Path, section: Section) -> None:
    """Put the section behind the others of the report in `folder`, in the place of an earlier one."""
    document = Document("", "", (), (), (section,))
    (folder / "figures").mkdir(exist_ok=True)
    for picture in document.pictures():
        (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    page = folder / PAGE
    text = page.read_text(encoding="utf-8")
    text = _without(text, f'<section id="{section.key}">', "</section>\n")
    link = f'<a href="#{section.key}">{section.title}</a>'
    text = text.replace(link, "").replace("</nav>", f"{link}</nav>", 1)
    before, end, after = text.rpartition("</main>")
    page.write_text(f"{before}{section_html(section)}\n{end}{after}", encoding="utf-8")
    words = folder / WORDS
    kept = _without(
        words.read_text(encoding="utf-8"), f"\n## {section.title}\n", "\n## ", keep=True
    )
    words.write_text(f"{kept.rstrip()}\n\n{section_text(section)}\n", encoding="utf-8")


def _without(text: str, start: str, end: str, *, keep: bool = False) -> str:
    """The text less what stands from `start` through `end`, which may be kept; to its own end where that is absent."""
    before, found, rest = text.partition(start)
    if not found:
        return text
    _, stop, after = rest.partition(end)
    return before + (stop if keep else "") + after
