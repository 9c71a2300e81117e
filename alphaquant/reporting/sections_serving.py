"""The report's section on serving, which is measured after the run that the report is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphaquant.reporting.document import Document, Grid, Picture, Section
from alphaquant.reporting.markdown import section_text
from alphaquant.reporting.page import section_html

_KEY, _TITLE = "serving", "Serving"
_HEADER = ("model", "with", "on disk", "load s", "memory", "read/s", "written/s", "computed with")


def serving_section(answer: Mapping[str, Any], png: bytes) -> Section:
    """What `alphaquant benchmark` found: `answer` is what it prints as JSON, `png` its figure."""
    load = (
        f"{answer['batch_size']} x {answer['prompt_tokens']} tokens read, {answer['new_tokens']} written, on "
        f"{answer['measured'][:10]}; {answer['cores']} cores under load {answer['load_average']}. Medians (lowest to highest) "
        "of fresh processes, tokens per second. Weights that a consumer decodes when it loads are as fast as those "
        "that they are decoded to: the last column says what was multiplied with."
    )
    rows = [serving_row(entry) for entry in answer["rows"]]
    numeric = frozenset(range(2, len(_HEADER) - 1))
    left_out = [f"{p['model']} with {p['consumer']}: {p['reason']}" for p in answer["not_measured"]]
    picture = Picture(
        _KEY,
        "Bytes, memory and speed by consumer",
        "Grey is the original; lines go from the lowest to the highest repeat.",
        png,
    )
    grid = Grid("Medians", _HEADER, rows, numeric)
    return Section(_KEY, _TITLE, [load, picture, grid, *left_out])


def serving_row(entry: Mapping[str, Any]) -> list[str]:
    """One model with one consumer, in the order of the table's columns."""
    memory = entry["device_peak_bytes"] or entry["peak_bytes"]
    return [
        entry["model"],
        entry["consumer"],
        _size(entry["bytes_on_disk"]),
        _span(entry["load_seconds"]),
        _size(memory["median"]),
        _span(entry["prefill"]),
        _span(entry["decode"]),
        entry["computed_with"],
    ]


def add_to_report(folder: Path, section: Section) -> None:
    """Put the section behind the others of the report in `folder`, in the place of an earlier one."""
    document = Document("", "", (), (), (section,))
    (folder / "figures").mkdir(exist_ok=True)
    for picture in document.pictures():
        (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    page = folder / "report.html"
    text = _without(page.read_text(encoding="utf-8"), '<section id="serving">', "</section>\n")
    link = f'<a href="#{_KEY}">{_TITLE}</a>'
    text = text.replace(link, "").replace("</nav>", f"{link}</nav>", 1)
    before, end, after = text.rpartition("</main>")
    page.write_text(f"{before}{section_html(section)}\n{end}{after}", encoding="utf-8")
    words = folder / "report.md"
    kept = _without(words.read_text(encoding="utf-8"), f"\n## {_TITLE}\n", None)
    words.write_text(f"{kept.rstrip()}\n\n{section_text(section)}\n", encoding="utf-8")


def _without(text: str, start: str, end: str | None) -> str:
    """The text less what stands from `start` to `end`, or to its own end."""
    before, found, rest = text.partition(start)
    if not found:
        return text
    return before if end is None else before + rest.partition(end)[2]


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _span(found: Mapping[str, float]) -> str:
    """The median, and the range where there is one."""
    values = [found[key] for key in ("low", "median", "high")]
    low, middle, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"
