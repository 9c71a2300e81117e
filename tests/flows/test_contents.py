"""Files of the user's enter keys by content."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphaquant.errors import DataError
from flows.contents import file_digests


def test_names_that_are_no_files_are_left_out() -> None:
    assert file_digests(["builtin", "wikitext2", "owner/dataset"]) == {}


def test_files_of_one_name_in_two_folders_both_count(tmp_path: Path) -> None:
    names = [str(tmp_path / folder / "task.yaml") for folder in "ab"]
    for name in names:
        Path(name).parent.mkdir()
        Path(name).write_text("metric: acc")
    before = file_digests(names)
    assert set(before) == {*names}
    for name in names:
        Path(name).write_text("metric: f1")
        after = file_digests(names)
        assert after != before
        before = after


def test_what_a_task_file_may_include_counts_too(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("include: base.yaml")
    (tmp_path / "base.yaml").write_text("metric: acc")
    (tmp_path / "utils.py").write_text("x = 1")
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").write_text("1")
    name = str(tmp_path / "task.yaml")
    before = file_digests([name])
    related = {"base.yaml", "utils.py", "data/test.csv"}
    assert set(before) == {name, *(f"{name}: {file}" for file in related)}
    (tmp_path / "data" / "test.csv").write_text("2")
    assert file_digests([name]) != before


def test_hidden_files_and_what_programs_made_do_not_count(tmp_path: Path) -> None:
    name = str(tmp_path / "task.yaml")
    (tmp_path / "task.yaml").write_text("metric: acc")
    for made in (
        ".git/a.json",
        "venv/pyvenv.cfg",
        "artifacts/keys/a.json",
        "artifacts/objects/a.json",
    ):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("{}")
    (tmp_path / "venv" / "module.py").write_text("")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "summary.json").write_text('{"run_id": "1"}')
    assert set(file_digests([name])) == {name}


def test_a_task_among_too_many_files_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.contents._MOST_FILES", 2)
    for number in range(4):
        (tmp_path / f"{number}.yaml").write_text("")
    with pytest.raises(DataError, match="more than 2 files"):
        file_digests([str(tmp_path / "0.yaml")])
