"""Pages of a finished and of a failed run, as the Prefect UI is given them."""

from __future__ import annotations

import base64
import logging
import re
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alphaquant.errors import DataError, StoreError
from flows import ui_pages
from flows.ui_failure import failed_stage, failure_page, failure_sentence, note_stage
from flows.ui_pages import Page, pages
from flows.ui_sweep import sweep_pages

_PNG = b"\x89PNG not really"


def _plan_row(block: int, role: str, name: str, bits: float, group: int | None) -> dict[str, Any]:
    return {
        "linear": f"{block}.{role}",
        "role": role,
        "block": block,
        "rows": 64,
        "cols": 64,
        "format": name,
        "group_size": group,
        "symmetric": True,
        "bits_per_weight": bits,
    }


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """A run's summary, its products beside its report."""
    rows = [
        row
        for block in range(3)
        for row in (
            _plan_row(block, "q", "int4", 4.125, 128),
            _plan_row(
                block, "down", *(("mxfp8", 8.25, 32) if block == 2 else ("int4", 4.125, 128))
            ),
        )
    ]
    plan = pd.DataFrame(rows)
    plan["group_size"] = plan["group_size"].astype("Int64")
    plan.to_parquet(tmp_path / "plan.parquet")
    scores = [
        ("heldout", "perplexity", 24.542077, 20.0, 32.8, "original"),
        ("heldout", "perplexity", 24.797006, 20.2, 33.0, "quantized"),
        ("heldout", "perplexity_ratio", 1.010387, 1.002766, 1.016541, "quantized"),
        ("heldout", "kl_mean", 0.0096342, 0.0087, 0.0106, "quantized"),
        ("my_task", "acc", 0.375, 0.1, 0.7, "original"),
        ("my_task", "acc", 0.3125, 0.1, 0.7, "quantized"),
    ]
    columns = ["task", "metric", "value", "low", "high", "model"]
    pd.DataFrame(scores, columns=columns).to_parquet(tmp_path / "scores.parquet")
    (tmp_path / "figures").mkdir()
    for name in ("small", "other"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(_PNG)
    (tmp_path / "figures" / "large.png").write_bytes(_PNG * 1000)
    report = [
        f"## Part {n}\n\n![{n}](figures/{n}.png)\n\n*{n}.* How to read it.\n"
        for n in ("small", "large", "other")
    ]
    (tmp_path / "report.md").write_text("\n".join(["# Report\n", *report]))
    stages = [
        {"name": "alpha", "state": "cached", "reason": "unchanged since May", "seconds": 0.1},
        {
            "name": "quantize",
            "state": "ran",
            "reason": "changed: plan 1 -> 2",
            "seconds": 75.04,
            "host": "node7",
            "device": "cuda:1",
        },
    ]
    return {
        "run_id": "20260101-000000-abc",
        "bits_per_weight": 4.8125,
        "stages": stages,
        "blocks": {"ran": 2, "cached": 1},
        "checkpoint": str(tmp_path / "checkpoint"),
        "report": str(tmp_path / "report.html"),
    }


@pytest.fixture
def shown(summary: dict[str, Any]) -> dict[str, Page]:
    """The run's pages by key."""
    return {page.key: page for page in pages(summary)}


def test_every_product_has_a_page_whose_key_prefect_accepts(shown: dict[str, Page]) -> None:
    assert list(shown) == ["stages", "plan", "scores", "figures", "report"]
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in shown)


def test_stages_tell_what_ran_where_and_why(shown: dict[str, Page]) -> None:
    page = shown["stages"]
    assert page.headline == "1 ran, 1 cached, 0 skipped, 1 min 15 s in all"
    assert "| alpha | cached |  |  | unchanged since May |" in page.markdown
    row = next(line for line in page.markdown.splitlines() if "quantize" in line)
    assert "1&nbsp;min&nbsp;15&nbsp;s" in row
    assert "node7 cuda:1" in row
    assert "Blocks: 2 ran, 1 cached" in page.markdown


def test_blocks_with_the_same_formats_share_a_row(shown: dict[str, Page]) -> None:
    text = shown["plan"].markdown
    assert "| 0 to 1 | 4.125 | int4-g128 |" in text
    assert "| 2 | 6.188 | int4-g128 50 %, mxfp8 50 % |" in text
    assert "| down | 3 | 5.500 | int4-g128 67 %, mxfp8 33 % |" in text
    assert shown["plan"].headline == "4.812 bits per weight: int4-g128 83 %, mxfp8 17 %"


def test_scores_are_rounded_and_compared(shown: dict[str, Page]) -> None:
    page = shown["scores"]
    assert page.headline == "perplexity 24.54 → 24.80, KL 0.00963, my_task 37.5 → 31.2 %"
    assert "| 24.54 | 24.80 | +1.04 % (+0.28 to +1.65) | lower |" in page.markdown
    assert not re.search(r"\d\.\d{6}", page.markdown)


def test_figures_are_inline_with_their_captions(
    summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui_pages, "_MOST_BYTES", 1000)
    page = {page.key: page for page in pages(summary)}["figures"]
    found = re.findall(r"base64,([^)]+)\)\n\n(.*)", page.markdown)
    assert [base64.b64decode(data) for data, _ in found] == [_PNG, _PNG]
    assert [caption for _, caption in found] == [
        "*small.* How to read it.",
        "*other.* How to read it.",
    ]
    assert "## Part large" not in page.markdown
    assert page.markdown.endswith("1 more are in the report.\n")
    assert page.headline == "2 of the report's 3 figures"


def test_the_report_is_found_by_host_and_absolute_path(
    summary: dict[str, Any], shown: dict[str, Page], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    near = summary | {"report": "report.html", "checkpoint": "checkpoint"}
    assert {page.key: page for page in pages(near)} == shown
    assert f"scp {socket.gethostname()}:{tmp_path}/report.html" in shown["report"].markdown
    assert f'alphaquant.load("{tmp_path}/checkpoint")' in shown["report"].markdown


@pytest.fixture
def sweep(tmp_path: Path) -> dict[str, Any]:
    """A sweep's summary beside its page and picture."""
    (tmp_path / "pareto.png").write_bytes(_PNG)
    (tmp_path / "sweep.md").write_text("# Demo\n\n![KL](pareto.png)\n\n[a](a/report.html)\n")
    return {"page": str(tmp_path / "sweep.md")}


def test_a_sweep_shows_its_page_with_the_picture_inside(sweep: dict[str, Any]) -> None:
    [page] = sweep_pages(sweep)
    picture = base64.b64encode(_PNG).decode()
    assert page.key == "sweep"
    assert page.markdown == (
        f"# Demo\n\n![KL](data:image/png;base64,{picture})\n\n[a](a/report.html)\n"
    )


def test_a_sweep_that_cannot_be_shown_does_not_fail(
    sweep: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.ui import show_sweep

    (tmp_path / "pareto.png").unlink()
    show_sweep(sweep)
    assert "shows no results of this sweep: " in caplog.text


def test_a_foreseen_failure_is_its_message_and_what_to_do() -> None:
    error = DataError("no text in *my_file*")
    note_stage(error, "calibration")
    page = failure_page(error)
    assert page.key == "failure"
    assert page.headline == "Stage calibration failed: no text in *my_file*"
    title, message, advice = page.markdown.strip().split("\n\n")
    assert title == "# Stage calibration refused its input"
    assert message == r"> no text in \*my\_file\*"
    assert "Mend what the message names" in advice


def test_an_error_before_any_stage_names_none() -> None:
    error = DataError("no such file")
    assert failed_stage(error) is None
    assert failure_sentence(error) == "The run was refused: no such file"
    assert failure_page(error).markdown.startswith("# The run was refused\n")


def test_a_full_disk_is_no_fault_of_the_form() -> None:
    assert "Retry" in failure_page(StoreError("the disk is full")).markdown


def test_a_traceback_comes_after_the_message_and_what_to_do() -> None:
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        note_stage(error, "alpha")
        text = failure_page(error).markdown
    places = [text.index(part) for part in ("ZeroDivisionError: division", "Retry", "Traceback")]
    assert places == sorted(places)
    assert "test_ui.py" in text


def test_the_innermost_stage_is_the_one_that_failed() -> None:
    error = DataError("x")
    note_stage(error, "quantize")
    note_stage(error, "evaluate")
    assert failed_stage(error) == "quantize"


@pytest.mark.parametrize(("error", "kept"), [(DataError("x"), False), (KeyError("x"), True)])
def test_the_engine_keeps_tracebacks_of_unforeseen_errors_only(
    error: Exception, kept: bool
) -> None:
    from flows.ui import _is_unforeseen

    record = logging.LogRecord(
        "prefect.engine", logging.ERROR, "", 0, "exited", (), (type(error), error, None)
    )
    assert _is_unforeseen(record) is kept
