"""The report of one run: figures, one self-contained HTML page and the same in Markdown."""

from __future__ import annotations

from pathlib import Path

from alphaquant.clock import timed
from alphaquant.reporting.document import Document
from alphaquant.reporting.findings import SENSITIVITY, find
from alphaquant.reporting.headline import answer, cards
from alphaquant.reporting.linears import linear_table
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.page import to_html
from alphaquant.reporting.scores import Scores
from alphaquant.reporting.sections_alpha import alpha_section, direction_section
from alphaquant.reporting.sections_cost import error_section, router_section, score_section
from alphaquant.reporting.sections_plan import bits_section, run_section
from alphaquant.reporting.sections_tuning import tuning_section
from alphaquant.reporting.style import drawing
from alphaquant.reporting.tables import ReportInputs, tidy
from alphaquant.reporting.words_alpha import budget_verdict, direction_words


@timed("report")
def write_report(inputs: ReportInputs, out: Path) -> None:
    """Write `report.html`, `report.md` and `figures/*.png` into `out`: same tables, same bytes.

    Whatever the run did not measure is left out and named as absent. Raises StoreError for a table
    without a needed column.
    """
    document = build_report(inputs)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for picture in document.pictures():
        (figures / f"{picture.name}.png").write_bytes(picture.png)
    (out / "report.md").write_text(to_markdown(document), encoding="utf-8")
    (out / "report.html").write_text(to_html(document), encoding="utf-8")


def build_report(inputs: ReportInputs) -> Document:
    """The report's content, with every figure drawn."""
    inputs = tidy(inputs)
    linears, scores = linear_table(inputs), Scores.of(inputs.scores)
    findings = find(inputs, linears)
    summary = answer(inputs, linears, scores)
    if SENSITIVITY in findings.relations:
        summary += direction_words(findings.relations[SENSITIVITY])
    if findings.budget is not None:
        summary.append(budget_verdict(findings.budget))
    with drawing():
        sections = (
            score_section(scores),
            bits_section(inputs, linears),
            alpha_section(inputs, linears),
            direction_section(inputs, findings),
            error_section(inputs, linears),
            tuning_section(inputs),
            router_section(inputs, linears),
            run_section(inputs),
        )
    facts = [inputs.model_type, f"digest {inputs.digest[:12]}" if inputs.digest else ""]
    return Document(
        title=f"AlphaQuant report: {inputs.model}",
        subtitle=" · ".join(fact for fact in facts if fact),
        cards=cards(inputs, linears, scores),
        answer=summary,
        sections=tuple(section for section in sections if section is not None),
    )
