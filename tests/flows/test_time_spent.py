"""Where the time went, in what a run hands over."""

from __future__ import annotations

from pathlib import Path

from alphaquant.reporting.document import Document
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.page import to_html
from alphaquant.store.profile import StageProfile
from alphaquant.work import Spent
from flows.time_spent import PROFILE, add_profile


def profiles(seconds: float = 8.0) -> list[StageProfile]:
    return [StageProfile("quantize", {"columns": Spent(seconds)}, [], None)]


def report(folder: Path) -> Path:
    document = Document("Report", "", (), ("An answer.",))
    folder.mkdir()
    (folder / "report.html").write_text(to_html(document), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(document), encoding="utf-8")
    return folder


def test_a_figure_of_the_same_seconds_is_taken_from_the_run_before(tmp_path: Path) -> None:
    first = report(tmp_path / "first")
    add_profile(first, tmp_path / "none", profiles())
    drawn = first / "figures" / "time_by_step.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.write_bytes(b"known")
    same, other = report(tmp_path / "same"), report(tmp_path / "other")
    add_profile(same, first, profiles())
    add_profile(other, first, profiles(9.0))
    assert (same / "figures" / "time_by_step.png").read_bytes() == b"known"
    assert (other / "figures" / "time_by_step.png").read_bytes().startswith(b"\x89PNG")
    assert (same / PROFILE).read_bytes() == (first / PROFILE).read_bytes()


def test_what_has_no_report_or_no_seconds_gets_no_section(tmp_path: Path) -> None:
    add_profile(tmp_path, tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    add_profile(tmp_path, tmp_path, profiles())
    assert [path.name for path in tmp_path.iterdir()] == [PROFILE]
