"""What a person sees: live bars on a terminal, few plain lines elsewhere, readable durations."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from alphaquant.progress import reporter, track
from alphaquant.store.stage import StageResult
from flows.display import (
    PlainDisplay,
    current_display,
    duration,
    showing_progress,
    stage_table,
    summary_table,
)

RESULT = StageResult("alpha", "ran", "first run", 1.25, "k", None)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def _work(console: Console) -> None:
    with showing_progress(console) as display:
        display.begin("alpha")
        for _ in track(range(200), "linears", 200):
            pass
        reporter().note("a remark [with brackets]")
        display.end(RESULT)


def test_without_a_terminal_a_stage_is_two_lines_and_remarks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "alphaquant.run"):
        _work(Console(file=io.StringIO()))
    assert [line.split() for line in caplog.messages] == [
        ["alpha", "..."],
        ["a", "remark", "[with", "brackets]"],
        ["alpha", "ran", "in", "1.2", "s", "(first", "run)"],
    ]


def test_long_work_is_reported_now_and_then_with_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr("flows.display.time.monotonic", lambda: next(clock))
    display = PlainDisplay(interval=10)
    with caplog.at_level(logging.INFO, "alphaquant.run"):
        display.begin("alpha")
        for done in range(31):
            display.update("linears", done, 100)
    said = caplog.messages[1:]
    assert len(said) == 3
    assert said[0] == "  linears 9/100, about 1 min 31 s left"


def test_on_a_terminal_bars_move_and_the_stages_line_stays() -> None:
    screen = io.StringIO()
    _work(Console(file=screen, force_terminal=True, width=120))
    assert "linears" in screen.getvalue()
    last = screen.getvalue().rsplit("a remark [with brackets]", 1)[1]
    assert "alpha" in last
    assert "first run" in last


def test_brackets_in_a_reason_are_no_markup() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with showing_progress(console) as display:
        display.end(StageResult("alpha", "ran", "changed: x [bold] -> [red]", 1.0, "k", None))
    console.print(stage_table([{"name": "a", "state": "run", "reason": "[bold]"}], "[red]"))
    assert "changed: x [bold] -> [red]" in screen.getvalue()
    assert screen.getvalue().count("[bold]") == 2
    assert screen.getvalue().count("[red]") == 2


def test_reporting_ends_with_the_display() -> None:
    with showing_progress(Console(file=io.StringIO())) as display:
        assert current_display() is display
    assert current_display() is not display


def test_the_summary_fits_one_screen_and_holds_the_numbers() -> None:
    summary: dict[str, Any] = {
        "model": "demo",
        "bits_per_weight": 4.2471,
        "stages": [{"state": "ran"}, {"state": "cached"}, {"state": "skipped"}],
        "blocks": {"ran": 1, "cached": 3},
        "scores": {
            "perplexity": {"original": 12.5, "quantized": 12.75},
            "kl": 0.012345,
            "top1_agreement": 0.912,
            "tasks": {
                "builtin_cloze": {
                    "acc": {"original": 0.6, "quantized": 0.55},
                    "acc_norm": {"original": 0.4, "quantized": 0.375},
                    "acc_norm_change": {"quantized": -0.025},
                },
                "builtin_rolling": {"bits_per_byte": {"original": 1.5, "quantized": 1.53333}},
            },
        },
        "checkpoint": "runs/demo-4.25/checkpoint",
        "report": "runs/demo-4.25/report.html",
    }
    screen = io.StringIO()
    Console(file=screen, width=100).print(summary_table(summary))
    for shown in (
        "4.247",
        "12.50 original, 12.75 quantized",
        "0.0123 nats per token",
        "91.2%",
        "40.0% original, 37.5% quantized",
        "1.500 original, 1.533 quantized",
        "1 ran, 1 cached, 1 skipped",
        "1 ran, 3 cached",
        "runs/demo-4.25/report.html",
    ):
        assert shown in screen.getvalue()
    assert screen.getvalue().count("builtin_cloze") == 1


def test_a_summary_without_scores_has_no_empty_lines() -> None:
    summary: dict[str, Any] = {
        "model": "demo",
        "bits_per_weight": 4.0,
        "stages": [],
        "blocks": {"ran": 0, "cached": 0},
        "scores": {"perplexity": None, "kl": None, "top1_agreement": None, "tasks": {}},
        "checkpoint": "out",
        "report": None,
    }
    screen = io.StringIO()
    Console(file=screen, width=100).print(summary_table(summary))
    assert "perplexity" not in screen.getvalue()
    assert "report" not in screen.getvalue()


def test_work_that_begins_anew_is_timed_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("flows.display.time.monotonic", lambda: now[0])
    display = PlainDisplay()
    display.begin("quantize")
    caplog.clear()  # a test before this one may have left the level at INFO
    with caplog.at_level(logging.INFO, "alphaquant.run"):
        for _block in range(2):
            for step in range(11):
                display.update("tuning step", step, 100)
                now[0] += 2
    assert caplog.messages == [
        f"  tuning step {step}/100, about 3 min {seconds} s left"
        for step, seconds in ((5, 10), (10, 0), (4, 12), (9, 2))
    ]
