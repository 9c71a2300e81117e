"""Code that is edited while it runs: nothing is kept under a key that names other code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alphaquant.errors import StoreError
from alphaquant.linalg import gram_in_c
from alphaquant.store import edits
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.edits import CodeGuard
from alphaquant.store.fingerprint import code_fingerprint, source_of
from alphaquant.store.stage import Stage, Workbench, run_stage

MODULE = "alphaquant.formats.scheme"
CODE = {MODULE: "0123", "alphaquant.text/manifest.json": "4567"}


def _edit(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(MODULE)
    assert source is not None
    monkeypatch.setitem(edits._AT_START, source, 1)


def test_unchanged_code_passes() -> None:
    CodeGuard(CODE).check()


def test_an_edit_since_the_process_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _edit(monkeypatch)
    with pytest.raises(StoreError, match=rf"{MODULE} changed on disk.*give the same command again"):
        CodeGuard(CODE)


def test_an_edit_of_what_is_in_memory_already_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = CodeGuard(CODE)
    _edit(monkeypatch)
    guard.check()


def test_an_edit_of_what_is_loaded_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, MODULE)
    guard = CodeGuard(CODE)
    _edit(monkeypatch)
    with pytest.raises(StoreError, match=MODULE):
        guard.check()


def test_an_edit_of_c_is_refused_as_it_may_be_compiled_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = code_fingerprint("alphaquant.linalg.hessian")
    label = "alphaquant.linalg/gram.c"
    assert label in code
    guard = CodeGuard(code)
    source = Path(gram_in_c.__file__).with_name("gram.c")
    monkeypatch.setitem(edits._AT_START, source, 0)
    with pytest.raises(StoreError, match=label):
        guard.check()


def test_a_stage_whose_code_was_edited_meanwhile_keeps_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, MODULE)

    def body(out: Path, store: Workbench) -> None:
        blocks = store.block_cache()
        assert blocks.get(0, {}) is None
        _edit(monkeypatch)
        blocks.put(0, {}, lambda folder: _write(folder / "block"))

    stage = Stage("toy", body, MODULE)
    with pytest.raises(StoreError, match="changed on disk"):
        run_stage(stage, store, {})
    assert not list((store.root / "keys").rglob("*.json"))


def test_what_an_editor_leaves_beside_the_code_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "__init__.py"
    source.touch()
    (tmp_path / ".#scheme.py").symlink_to("developer@machine.1234")
    monkeypatch.setattr(edits, "source_of", lambda package: source)
    assert edits._times()[source] == source.stat().st_mtime_ns


def _write(path: Path) -> None:
    path.write_text("x")
