"""Handing over: whole folders, links where they are safe, nothing of the user's overwritten."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from flows.publish import check_target, copy_artifact, whole_folder


@pytest.fixture
def source(store: ArtifactStore) -> Path:
    """An artifact with a tensor file and a JSON file."""
    with store.draft("export") as draft:
        (draft.path / "model.safetensors").write_bytes(b"weights")
        (draft.path / "config.json").write_text("{}")
    assert draft.ref is not None
    return store.path(draft.ref)


def test_tensors_are_linked_and_small_files_copied_so_that_they_can_be_edited(
    source: Path, tmp_path: Path
) -> None:
    copy_artifact(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert (tmp_path / "out" / "model.safetensors").samefile(source / "model.safetensors")
    assert not (tmp_path / "out" / "config.json").samefile(source / "config.json")
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o200


def test_tensors_are_copied_where_links_are_impossible(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copy_artifact(source, tmp_path / "out")
    copied = tmp_path / "out" / "model.safetensors"
    assert copied.read_bytes() == b"weights"
    assert not copied.samefile(source / "model.safetensors")


@pytest.mark.parametrize("name", ["summary.json", "alphaquant.json"])
def test_a_folder_with_our_summary_may_be_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(json.dumps({"run_id": "1"}))
    check_target(tmp_path / "out")


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_target(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", '{"other": 1}'])
def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text(content)
    with pytest.raises(UserError, match="was not made by alphaquant"):
        check_target(tmp_path / "out")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="was not made by alphaquant"):
        check_target(tmp_path / "out")


def test_a_failure_while_filling_leaves_the_old_folder_and_no_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text('{"run_id": "1"}')
    with pytest.raises(KeyError), whole_folder(out) as draft:
        _fail_in(draft)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "summary.json").exists()


def _fail_in(draft: Path) -> None:
    (draft / "half").write_text("")
    raise KeyError


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_draft_that_cannot_be_put_in_place_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text('{"run_id": "1"}')
    rename = Path.rename

    def fail_for_the_draft(source: Path, target: Path) -> Path:
        if target == out and not source.name.endswith(".old"):
            raise failure
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_draft)
    with pytest.raises(failure), whole_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "summary.json").read_text()) == {"run_id": "1"}


def test_drafts_of_killed_runs_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123abcd"
    other = tmp_path / ".out.notes"
    for folder in (left, other):
        folder.mkdir()
        (folder / "file").write_text("x")
        os.utime(folder, (1, 1))
    with whole_folder(tmp_path / "out") as living:
        os.utime(living, (1, 1))
        assert not left.exists()
        with whole_folder(tmp_path / "out") as second:
            assert living.exists()
            _fill(second)
        _fill(living)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes", "out"]


def _fill(folder: Path) -> None:
    (folder / "summary.json").write_text('{"run_id": "r"}')
