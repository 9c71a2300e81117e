"""A report as one self-contained HTML page: styles, figures and words inside, nothing fetched."""

from __future__ import annotations

import base64
import html
import re
from string import Template

from alphaquant.reporting.document import Card, Document, Grid, Picture, Section

_LONG_CELL = 24  # characters; a longer cell of code may break anywhere

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="sub">$subtitle</p>
<div class="cards">
$cards
</div>
<div class="answer">
$answer
</div>
<nav>$links</nav>
</header>
<main>
$sections
</main>
</body>
</html>
""")

_STYLE = """\
:root { --text: #1d2329; --soft: #5b6670; --line: #dde2e6; --back: #f6f7f9; --card: #ffffff; --accent: #0b5c92; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ec; --soft: #a3adb6; --line: #39424a; --back: #14181c; --card: #1e242a; --accent: #7cc0ee; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3, summary { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .5rem; }
summary { cursor: pointer; color: var(--accent); }
p { max-width: 46rem; margin: .6rem 0; }
.sub, figcaption, .card small { color: var(--soft); }
.sub { margin: 0 0 1.2rem; font-size: .95rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)); gap: .8rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.card span { display: block; font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
.card strong { display: block; font-size: 1.4rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.card small { font-size: .82rem; }
.answer { margin: 1.4rem 0; padding: .2rem 0 .2rem 1.1rem; border-left: 3px solid var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .95rem; }
a { color: var(--accent); text-underline-offset: .18em; }
figure { margin: 1.4rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.canvas { background: #fff; padding: .8rem; overflow-x: auto; }
img { display: block; width: 100%; min-width: 34rem; height: auto; }
figcaption { padding: .7rem 1rem .9rem; font-size: .92rem; border-top: 1px solid var(--line); }
figcaption b { color: var(--text); }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); }
.n { text-align: right; white-space: nowrap; }
th.n { white-space: normal; }
td.c, td.w { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .82rem; }
td.c { white-space: nowrap; }
td.w { overflow-wrap: anywhere; min-width: 14rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .88em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { th, td { padding: .35rem .5rem; } .cards { grid-template-columns: 1fr 1fr; }
  .card strong { font-size: 1.1rem; } }
@media print { body { background: #fff; color: #000; max-width: none; } figure, .card { break-inside: avoid; } nav { display: none; } }
"""


def to_html(document: Document) -> str:
    """The whole report as one page; every text is escaped."""
    return _PAGE.substitute(
        title=html.escape(document.title),
        style=_STYLE,
        subtitle=html.escape(document.subtitle),
        cards="\n".join(_card(card) for card in document.cards),
        answer="\n".join(_paragraph(text) for text in document.answer),
        links="".join(f'<a href="#{s.key}">{html.escape(s.title)}</a>' for s in document.sections),
        sections="\n".join(section_html(section) for section in document.sections),
    )


def section_html(section: Section) -> str:
    """One section of the page."""
    parts = [f'<section id="{section.key}">', f"<h2>{html.escape(section.title)}</h2>"]
    for item in section.items:
        if isinstance(item, Picture):
            parts.append(_figure(item))
        elif isinstance(item, Grid):
            parts.append(_grid(item))
        else:
            parts.append(_paragraph(item))
    return "\n".join([*parts, "</section>"])


def _card(card: Card) -> str:
    note = f"<small>{html.escape(card.note)}</small>" if card.note else ""
    return (
        f'<div class="card"><span>{html.escape(card.label)}</span>'
        f"<strong>{html.escape(card.value)}</strong>{note}</div>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    alt = html.escape(picture.alt)
    return (
        f'<figure id="{picture.name}"><div class="canvas"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption><b>{alt}.</b> {_inline(picture.caption)}</figcaption></figure>"
    )


def _grid(grid: Grid) -> str:
    head = "".join(
        f"<th{_class(grid, column)}>{html.escape(title)}</th>"
        for column, title in enumerate(grid.header)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{_class(grid, c)}>{_cell(grid, c, cell)}</td>" for c, cell in enumerate(row))
        + "</tr>"
        for row in grid.rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(grid.header) else ""
    table = f'<div class="table"><table>{header}<tbody>{body}</tbody></table></div>'
    title = html.escape(grid.title)
    if grid.folded:
        return f"<details><summary>{title}</summary>{table}</details>"
    return f"<h3>{title}</h3>{table}"


def _class(grid: Grid, column: int) -> str:
    names = ["n"] if column in grid.numeric else []
    if column in grid.code:
        longest = max((len(row[column]) for row in grid.rows), default=0)
        names.append("w" if longest > _LONG_CELL else "c")
    return f' class="{" ".join(names)}"' if names else ""


def _cell(grid: Grid, column: int, text: str) -> str:
    """Escaped; code may break after its dots, as a linear's name is one long word."""
    escaped = html.escape(text)
    return escaped.replace(".", ".<wbr>") if column in grid.code else escaped


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
