from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from alphaquant.clock import Step
from alphaquant.reporting.addition import add_to_report
from alphaquant.reporting.document import Document, Grid, Section
from alphaquant.reporting.figures_time import STEP_COLOUR, time_figure
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.page import to_html
from alphaquant.reporting.sections_time import time_section, told
from alphaquant.reporting.style import drawing
from alphaquant.store.profile import StageProfile
from alphaquant.work import Rates, Spent, Work

RATES = Rates(1e9, 1e9, 1e9, 1e9, 1e9, "toy, 2 cores")
BLOCK = {"columns": Spent(3.0, Work(flop=5e8)), "other": Spent(0.5)}


def profiles(seconds: float = 8.0) -> list[StageProfile]:
    alpha = {"spectrum": Spent(2.0, Work(flop=1e9, moved=5e8)), "null": Spent(0.001)}
    whole = {"columns": Spent(6.0, Work(flop=1e9)), "other": Spent(seconds - 6.0)}
    return [
        StageProfile("alpha", alpha, [], None),
        StageProfile("quantize", whole, [BLOCK, BLOCK], RATES),
    ]


def test_every_step_has_a_colour_of_its_own() -> None:
    assert list(STEP_COLOUR) == list(get_args(Step))
    assert len(set(STEP_COLOUR.values())) == len(STEP_COLOUR)


def test_bars_are_as_long_as_stages_and_blocks_took() -> None:
    with drawing():
        stages, strip = time_figure(profiles()).axes
    bars: list[Any] = list(stages.patches)
    for place, seconds in enumerate((2.001, 8.0)):
        ends = [b.get_x() + b.get_width() for b in bars if round(b.get_y() + 0.34) == place]
        assert max(ends) == pytest.approx(seconds)
    blocks: list[Any] = list(strip.patches)
    assert max(b.get_y() + b.get_height() for b in blocks) == pytest.approx(3.5)
    assert [list(line.get_xdata()) for line in stages.lines] == [[1.0, 1.0]]
    assert [list(line.get_ydata()) for line in strip.lines] == [[0.5, 0.5]] * 2
    words = [text.get_text() for text in stages.texts]
    assert words == ["2.00 s", "8.00 s, floor 1.0 s"]


def test_small_steps_share_a_colour_and_stages_without_blocks_need_no_strip() -> None:
    with drawing():
        figure = time_figure(profiles()[:1])
    assert len(figure.axes) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "spectrum",
        "other and small steps",
    ]


def test_the_table_sets_seconds_beside_the_floor() -> None:
    section = time_section(profiles(), b"png")
    (grid,) = [item for item in section.items if isinstance(item, Grid)]
    assert ["quantize", "columns", "6.00", "75 %", "1.00", "–", "1.00", "6.00"] in grid.rows
    assert ["quantize", "other", "2.00", "25 %", "–", "–", "–", "–"] in grid.rows
    assert ["alpha", "spectrum", "2.00", "100 %", "1.00", "0.500", "–", "–"] in grid.rows
    assert "6.00 times its floor" in str(section.items[0])
    assert "toy, 2 cores" in str(section.items[1])


def test_a_profile_is_told_as_json() -> None:
    answer = told(profiles()[1])
    assert answer["seconds"] == 8.0
    assert answer["floor"] == answer["steps"]["columns"]["floor"] == 1.0
    assert answer["machine"] == "toy, 2 cores"
    assert answer["blocks"][0] == {"columns": 3.0, "other": 0.5}


def report(folder: Path) -> Path:
    document = Document("Report", "", (), ("An answer.",), (Section("run", "The run", ["Words."]),))
    folder.mkdir()
    (folder / "report.html").write_text(to_html(document), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(document), encoding="utf-8")
    return folder


def test_a_section_that_is_renewed_leaves_those_behind_it(tmp_path: Path) -> None:
    folder = report(tmp_path / "run")
    add_to_report(folder, Section("time", "Where the time went", ["First."]))
    add_to_report(folder, Section("serving", "Serving", ["Tokens."]))
    add_to_report(folder, Section("time", "Where the time went", ["Second."]))
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "First." not in text
        assert text.index("Words.") < text.index("Tokens.") < text.index("Second.")
