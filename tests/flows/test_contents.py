"""Files of the user's enter keys by content."""

from __future__ import annotations

from pathlib import Path

from flows.contents import file_digests


def test_names_that_are_no_files_are_left_out() -> None:
    assert file_digests(["builtin", "wikitext2", "owner/dataset"]) == {}


def test_a_file_counts_by_content_and_name_not_by_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("words")
    one, other = (file_digests([str(tmp_path / folder / "text.txt")]) for folder in "ab")
    assert one == other
    (tmp_path / "b" / "text.txt").write_text("other words")
    assert file_digests([str(tmp_path / "b" / "text.txt")]) != one


def test_what_a_task_file_may_include_counts_too(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("include: base.yaml")
    (tmp_path / "base.yaml").write_text("metric: acc")
    (tmp_path / "utils.py").write_text("x = 1")
    (tmp_path / "picture.png").write_bytes(b"")
    before = file_digests([str(tmp_path / "task.yaml")])
    assert set(before) == {"task.yaml", "base.yaml", "utils.py"}
    (tmp_path / "utils.py").write_text("x = 2")
    assert file_digests([str(tmp_path / "task.yaml")]) != before
