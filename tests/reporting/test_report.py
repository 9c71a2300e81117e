"""Whatever a run measured or left out, its report is whole, honest, self-contained and repeatable."""

from __future__ import annotations

import html
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from alphaquant.reporting.document import Document, Grid
from alphaquant.reporting.figures_router import router_figure
from alphaquant.reporting.headline import cards
from alphaquant.reporting.linears import linear_table
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.page import to_html
from alphaquant.reporting.report import build_report, write_report
from alphaquant.reporting.scores import Scores
from alphaquant.reporting.tables import ReportInputs, tidy

MakeRun = Callable[..., ReportInputs]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def words(document: Document) -> str:
    """Every sentence, caption and table cell of a report."""
    parts = [*document.answer]
    for section in document.sections:
        for item in section.items:
            if isinstance(item, str):
                parts.append(item)
            elif isinstance(item, Grid):
                parts += [item.title, *item.header, *(cell for row in item.rows for cell in row)]
            else:
                parts += [item.alt, item.caption]
    return "\n".join(parts)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of a folder by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def moe_folder(moe_run: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(moe_run, out)
    return out


@pytest.fixture(scope="module")
def dense_report(dense_run: ReportInputs) -> Document:
    return build_report(dense_run)


def test_the_same_tables_in_any_row_order_give_the_same_bytes(
    moe_run: ReportInputs, moe_folder: Path, tmp_path: Path
) -> None:
    tables = {
        name: getattr(moe_run, name).sample(frac=1, random_state=1)
        for name in ("alpha", "sensitivity", "plan", "errors", "router_blocks")
    }
    # a user's settings must not show in a figure
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "figure.dpi": 40}):
        write_report(replace(moe_run, **tables), tmp_path)
    assert files(tmp_path) == files(moe_folder)


def test_every_figure_of_the_contract_is_there(moe_folder: Path) -> None:
    found = {path.stem for path in (moe_folder / "figures").glob("*.png")}
    assert found >= {
        "scores", "bits_by_block", "formats_by_role", "alpha_by_role", "alpha_by_depth", "alpha_experts",
        "alpha_sensitivity", "alpha_error", "equal_budget", "rivals", "errors", "router",
    }  # fmt: skip


def test_figures_have_150_dots_per_inch_or_more_and_no_date(moe_folder: Path) -> None:
    for path in (moe_folder / "figures").glob("*.png"):
        data = path.read_bytes()
        at = data.index(b"pHYs") + 4
        per_metre, _, unit = struct.unpack(">IIB", data[at : at + 9])
        assert unit == 1
        assert per_metre * 0.0254 >= 150
        assert b"tIME" not in data
        assert b"tEXt" not in data


def test_the_page_fetches_nothing_and_its_tags_are_closed(moe_folder: Path) -> None:
    page = (moe_folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script", page)
    checker = _Tags()
    checker.feed(page)
    assert checker.open == []
    assert {f"#{key}" for key in checker.ids} >= {s for s in sources if s.startswith("#")}


def test_markdown_links_lead_to_the_figures(moe_folder: Path) -> None:
    text = (moe_folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == len(list((moe_folder / "figures").glob("*.png")))
    assert all((moe_folder / link).is_file() for link in links)


def test_markdown_tables_have_as_many_cells_as_headings(moe_folder: Path) -> None:
    text = (moe_folder / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1


def test_the_first_screen_gives_the_answer(moe_run: ReportInputs) -> None:
    run = tidy(moe_run)
    found = cards(run, linear_table(run), Scores.of(run.scores))
    shown = {card.label: card.value for card in found}
    assert shown["perplexity, held-out text"] == "5.430 → 5.580"
    assert shown["KL to the original"] == "0.0240"
    assert shown["top-1 agreement"] == "94.1 %"
    assert shown["builtin_cloze"] == "62.1 → 60.4 %"
    assert float(shown["bits per weight"]) == pytest.approx(4.24, abs=0.01)
    assert shown["whole model"].endswith(" MB")


def test_names_from_outside_cannot_become_markup() -> None:
    name = "<img src=x onerror=alert(1)> | `a` *b* ![c](d)"
    document = build_report(ReportInputs(model=name))
    page = to_html(document)
    assert "<img src=x" not in page
    assert html.escape(name) in page
    outside_code = re.sub(r"`[^`\n]*`", "", to_markdown(document))
    assert "![c](d)" not in outside_code
    assert "<img" not in outside_code.replace("\\<", "")


def test_a_linears_name_may_break_after_its_dots(moe_folder: Path) -> None:
    page = (moe_folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r'<td class="w">model\.<wbr>layers\.<wbr>\d', page)


def test_a_dense_model_says_what_it_has_not(dense_report: Document) -> None:
    text = words(dense_report)
    assert "This model is dense: it has no routers" in text
    assert "there is no map over experts" in text
    names = {picture.name for picture in dense_report.pictures()}
    assert not names & {"router", "alpha_experts", "formats_experts"}


def test_rounding_to_nearest_shows_one_error_and_says_why(make_run: MakeRun) -> None:
    document = build_report(make_run(1, 0, method="rtn"))
    assert "the error before and after is the same and only one is shown" in words(document)
    assert "errors" in {picture.name for picture in document.pictures()}
    assert "error after the method" not in words(document)


def test_gptqs_gain_is_the_median_of_the_ratios(moe_run: ReportInputs) -> None:
    errors = moe_run.errors
    assert errors is not None
    ratio = errors["error"] / errors["error_rtn"]
    text = words(build_report(replace(moe_run, alpha=None, sensitivity=None, scores=None)))
    assert (
        f"With GPTQ the relative output error fell in {int((ratio < 1).sum())} of 208 rounded linears"
        in text
    )
    assert f"it was cut by {100 * (1 - np.median(ratio)):.0f} %" in text


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("alpha", "This run computed no alpha"),
        (
            "sensitivity",
            "Sensitivity was not measured in this run (policy `budget` does not need it)",
        ),
        ("plan", "This run made no plan"),
        ("errors", "This run has no table of errors"),
        ("scores", "This run evaluated nothing"),
    ],
)
def test_a_table_that_is_missing_is_named_as_absent(
    make_run: MakeRun, table: str, sentence: str
) -> None:
    assert sentence in words(build_report(replace(make_run(1, 0), **{table: None})))


def test_a_run_that_knows_nothing_still_has_a_report(tmp_path: Path) -> None:
    write_report(ReportInputs(model="m"), tmp_path)
    assert not list((tmp_path / "figures").iterdir())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "This run made no plan" in text
    assert "nothing is known about routers" in text
    assert "dense" not in text


def test_routers_that_were_not_trained_are_said_not_to_be(moe_run: ReportInputs) -> None:
    bare = replace(moe_run, alpha=None, sensitivity=None, scores=None, errors=None)
    untrained = replace(bare, router=None, router_blocks=None, router_history=None)
    untrained = replace(untrained, config={"router": {"method": "none"}})
    assert "Routers were not repaired in this run (`router.method` is `none`)" in words(
        build_report(untrained)
    )
    skipped = replace(untrained, router={"skipped": "the plan quantizes every router"})
    assert "Router repair was skipped: the plan quantizes every router." in words(
        build_report(skipped)
    )
    trained = words(build_report(bare))
    assert "lowered the KL on held-out windows from 0.0310 to 0.0240 nats per token" in trained
    assert "from 21.0 % to 17.0 %" in trained
    useless = replace(bare, router={"method": "kl", "kl_before": 0.02, "kl_after": 0.02})
    assert "found none with a lower KL" in words(build_report(useless))


@pytest.mark.parametrize("trained", [False, True])
def test_block_errors_of_repaired_routers_have_a_panel_of_their_own(
    moe_run: ReportInputs, trained: bool
) -> None:
    blocks, history = moe_run.router_blocks, moe_run.router_history if trained else None
    assert blocks is not None
    known = blocks.assign(error=np.linspace(0.05, 0.01, len(blocks)))
    summary = {"method": "align", "kl_before": 0.031, "kl_after": 0.024}
    for table, panels in ((known, 2), (known.assign(error=np.nan), 1), (blocks, 1)):
        figure = router_figure(table, history, summary)
        assert figure is not None
        labels = [axis.get_ylabel() for axis in figure.axes]
        assert len(labels) == panels + 2 * trained
        assert ("held-out block error (%)" in labels) is (panels == 2)
    run = replace(moe_run, router=summary, router_blocks=known, router_history=history)
    assert "Repairing the routers (`align`) lowered the KL" in words(build_report(run))


def test_odd_linears_do_not_stop_a_report(make_run: MakeRun) -> None:
    run = make_run(2, 4)
    assert run.alpha is not None
    assert run.plan is not None
    assert run.errors is not None
    assert run.sensitivity is not None
    alpha, errors, losses = run.alpha.copy(), run.errors.copy(), run.sensitivity.copy()
    alpha.loc[3, "alpha"] = np.inf
    errors.loc[0, ["error_rtn", "error"]] = 0.0
    errors.loc[1, "error"] = np.nan
    errors.loc[2, "tokens"] = 0
    losses.loc[losses["linear"] == alpha["linear"][5], "predicted_loss"] = 0.0
    head = run.plan.iloc[:1].assign(linear="lm_head", role="lm_head", block=pd.NA, format="bf16")
    head = head.assign(bits_per_weight=16.0, group_size=pd.NA)
    plan = pd.concat([run.plan, head], ignore_index=True)
    document = build_report(replace(run, alpha=alpha, errors=errors, sensitivity=losses, plan=plan))
    text = words(document)
    assert "1 linear without a tail (rank-deficient or constant) are left out" in text
    assert "No calibration token reached 1 linear." in text
    assert "1 linear with a value of zero" in text
    assert "lm_head" in text


def test_a_plan_that_rounds_nothing_has_a_report(make_run: MakeRun) -> None:
    run = make_run(1, 0)
    assert run.plan is not None
    plan = run.plan.assign(format="bf16", group_size=pd.NA, bits_per_weight=16.0)
    text = words(build_report(replace(run, plan=plan)))
    assert "No linear was rounded with a measurable error" in text
    assert "An equal-budget comparison needs" in text


def test_experts_with_formats_of_their_own_get_a_map(make_run: MakeRun) -> None:
    run = replace(make_run(2, 8, granularity="linear"), alpha=None, sensitivity=None, scores=None)
    assert "formats_experts" in {picture.name for picture in build_report(run).pictures()}


def test_the_library_leaves_pyplots_global_state_alone() -> None:
    code = "import sys, alphaquant.reporting.report; print('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.slow
def test_a_model_of_thousands_of_linears_has_a_report(make_run: MakeRun) -> None:
    document = build_report(make_run(24, 96, granularity="linear"))
    assert "6,000 linears, chosen at random, are drawn" in words(document)
    assert sum(len(picture.png) for picture in document.pictures()) < 8_000_000


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [340, 1200])
def test_the_page_is_never_wider_than_its_window(
    moe_folder: Path, tmp_path: Path, width: int
) -> None:
    page = (moe_folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("<details>", "<details open>")
    measure = (
        "document.querySelector('iframe').onload = event => document.title = "
        "String(event.target.contentDocument.documentElement.scrollWidth)"
    )
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        f"<script>{measure}</script>",
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    found = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(\d+)</title>", found.stdout)
    assert title is not None
    assert int(title[1]) <= width


class _Tags(HTMLParser):
    """Collects ids and the tags that are still open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for key, value in attrs if key == "id" and value}
        if tag not in ("meta", "img", "wbr", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_tuned_run_shows_what_tuning_brought_to_each_block(moe_run: ReportInputs) -> None:
    rows = [(0, 0.02, 0.01, 100), (1, 0.05, 0.03, 75), (2, 0.08, 0.08, 0)]
    table = pd.DataFrame(rows, columns=["block", "before", "after", "steps"])
    document = build_report(replace(moe_run, tuning=table))
    assert "tuning" in [picture.name for picture in document.pictures()]
    said = words(document)
    assert "held-out error of 2 blocks, in the median by 45 %" in said
    assert "In 1 block it found nothing better, and GPTQ's codes stay." in said
    whole = {"kl_before": 0.05, "kl_after": 0.04, "steps": 80}
    assert "fell by 20 %, from 0.0500 to 0.0400 nats" in words(
        build_report(replace(moe_run, tuning=table, model_tuning=whole))
    )
    kept = build_report(replace(moe_run, tuning=table.assign(steps=0)))
    assert "nothing better than GPTQ's codes in 3 blocks" in words(kept)
    assert "tuning" not in [section.key for section in build_report(moe_run).sections]
