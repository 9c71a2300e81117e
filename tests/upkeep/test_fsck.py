"""fsck: finds all damage, puts it aside, says what follows, and leaves runs alone."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import UserError
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import save_run
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage
from alphaquant.upkeep import soundness
from alphaquant.upkeep.fsck import Finding, fsck
from tests.store.contents import overwrite


def _alpha(out: Path, bench: Workbench) -> None:
    (out / "deep").mkdir()
    for name in ("one", "two", "deep/three"):
        (out / name).write_text(name)


def _quantize(out: Path, bench: Workbench) -> None:
    cache = bench.block_cache()
    for index in range(3):
        if cache.get(index, {}) is None:

            def write(folder: Path, text: str = f"block {index}") -> None:
                (folder / "block").write_text(text)

            cache.put(index, {}, write)
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


ALPHA, QUANTIZE = Stage("alpha", _alpha, __name__), Stage("quantize", _quantize, __name__)


class Used:
    """A store that two runs have used."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root)
        self.alpha, self.quantize = self.run("run-1")
        self.run("run-2")

    def run(self, run_id: str) -> list[StageResult]:
        """Run both stages and say so."""
        results = [run_stage(stage, self.store, {}) for stage in (ALPHA, QUANTIZE)]
        manifest = {
            "run_id": run_id,
            "started": "2025-01-01T00:00:00+00:00",
            "status": "completed",
            "stages": [{"name": result.name, "key": result.key} for result in results],
            "refs": {result.name: result.ref.model_dump() for result in results if result.ref},
        }
        save_run(self.store, manifest)
        return results

    def file(self, result: StageResult, name: str) -> Path:
        """A file of a stage's artifact."""
        assert result.ref is not None
        return self.store.place(result.ref) / name

    @property
    def block(self) -> ArtifactRef:
        """The second block."""
        assert self.quantize.ref is not None
        return self.store.children(self.quantize.ref)["block-0001"]

    def finding(self, **settings: Any) -> Finding:
        """The one thing that is wrong."""
        (finding,) = fsck(self.store, **settings).findings
        return finding


@pytest.fixture
def used(store: ArtifactStore) -> Used:
    """Two stages, one of them with three blocks."""
    return Used(store.root)


def test_a_sound_store_is_said_to_be_sound(used: Used) -> None:
    report = fsck(used.store)
    assert report.as_json()["sound"] is True
    assert (report.artifacts, report.records, report.runs) == (5, 5, 2)
    sizes = [path.stat().st_size for path in (used.store.root / "objects").rglob("*")]
    assert 0 < report.bytes < sum(sizes)
    assert report.left_over == {}


def test_every_harmed_file_is_named_and_the_artifact_is_put_aside_whole(used: Used) -> None:
    overwrite(used.file(used.alpha, "one"), "abc")
    overwrite(used.file(used.alpha, "two"), "longer")
    used.file(used.alpha, "deep/three").unlink()
    finding = used.finding()
    assert finding.problems == [
        "deep/three is missing",
        "the content of one was changed",
        "two has 6 bytes instead of 3",
    ]
    assert (finding.reruns, finding.runs) == (["alpha"], ["run-2", "run-1"])
    assert finding.moved_to is not None
    aside = Path(finding.moved_to)
    assert aside.parent == used.store.root / "quarantine" / "alpha"
    assert (aside / "one").read_text() == "abc"
    assert fsck(used.store).findings == []
    assert [result.state for result in used.run("run-3")] == ["ran", "cached"]


def test_a_harmed_block_is_made_again_alone(used: Used) -> None:
    overwrite(used.store.place(used.block) / "block", "x")
    finding = used.finding()
    assert finding.what == f"artifact {used.block}"
    assert (finding.reruns, finding.runs) == (["block 1 of quantize"], ["run-2", "run-1"])
    again = used.run("run-3")[1]
    assert (again.units_ran, again.units_cached, again.ref) == (1, 2, used.quantize.ref)


def test_a_lost_block_is_said_by_what_it_is_part_of(used: Used) -> None:
    shutil.rmtree(used.store.place(used.block))
    finding = used.finding()
    assert finding.what == f"artifact {used.quantize.ref}"
    assert finding.problems == [f"its part block-0001 ({used.block}) is missing"]
    assert finding.reruns == ["block 1 of quantize"]
    assert finding.moved_to is None
    used.run("run-3")
    assert fsck(used.store).findings == []


@pytest.mark.parametrize("harm", ["[]", None])
def test_a_harmed_manifest_is_damage(used: Used, harm: str | None) -> None:
    manifest = used.file(used.alpha, "MANIFEST.json")
    manifest.unlink()
    if harm is not None:
        manifest.write_text(harm)
    assert used.finding().problems[0].startswith("MANIFEST.json")


def test_a_file_that_does_not_belong_is_taken_out_and_nothing_runs_again(used: Used) -> None:
    used.file(used.alpha, "deep/stranger").write_text("hello")
    finding = used.finding()
    assert finding.problems == ["deep/stranger does not belong to it"]
    assert finding.reruns == []
    assert finding.moved_to is not None
    assert (Path(finding.moved_to) / "deep" / "stranger").read_text() == "hello"
    assert [result.state for result in used.run("run-3")] == ["cached", "cached"]


def test_a_dry_run_moves_nothing(used: Used) -> None:
    used.file(used.alpha, "one").unlink()
    before = sorted(used.store.root.rglob("*"))
    finding = used.finding(repair=False)
    assert (finding.moved_to, finding.reruns) == (None, ["alpha"])
    assert sorted(used.store.root.rglob("*")) == before


@pytest.mark.parametrize(
    "harm", [lambda text: text[:40], lambda text: text.replace("alpha", "beta")]
)
def test_a_record_that_is_not_what_was_written_is_put_aside(used: Used, harm: Any) -> None:
    path = used.store.root / "keys" / "alpha" / f"{used.alpha.key}.json"
    path.write_text(harm(path.read_text()))
    finding = used.finding()
    assert finding.what == f"record alpha/{used.alpha.key}"
    assert (finding.reruns, finding.runs) == (["alpha"], ["run-2", "run-1"])
    assert finding.moved_to is not None
    assert Path(finding.moved_to).parent == used.store.root / "quarantine" / "keys" / "alpha"
    assert not path.exists()


def test_a_folder_in_the_place_of_a_record_no_longer_stops_the_stage(used: Used) -> None:
    path = used.store.root / "keys" / "alpha" / f"{used.alpha.key}.json"
    path.unlink()
    path.mkdir()
    assert used.finding().problems == ["no plain file"]
    assert used.run("run-3")[0].state == "ran"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"run_id": "run-2"}', '{"run_id": "run-1", "refs": 3}']
)
def test_a_torn_run_manifest_is_put_aside(used: Used, text: str) -> None:
    (used.store.root / "runs" / "run-1.json").write_text(text)
    assert used.finding().what == "manifest of run run-1"
    assert not (used.store.root / "runs" / "run-1.json").exists()


def test_remains_are_counted_and_living_drafts_left_alone(used: Used) -> None:
    (used.store.root / "stat" / "alpha" / f"{'0' * 64}.json").write_text("{}")
    long_ago = time.time() - 7200
    with used.store.draft("toy") as draft:
        for folder in (draft.path, used.store.root / "tmp" / "dead"):
            folder.mkdir(exist_ok=True)
            os.utime(folder, (long_ago, long_ago))
        report = fsck(used.store)
        assert draft.path.exists()
        draft.discard()
    assert report.findings == []
    assert report.left_over == {"abandoned drafts": 1, "checks of artifacts that are gone": 1}


def test_fast_trusts_files_whose_stat_is_as_it_was(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    honest = soundness.sha256_of
    monkeypatch.setattr(soundness, "sha256_of", lambda path: hashed.append(path) or honest(path))
    os.utime(used.file(used.alpha, "one"))
    fsck(used.store, fast=True)
    assert hashed == [used.file(used.alpha, "one")]
    fsck(used.store)
    assert len(hashed) == 1 + 7


def test_what_was_hashed_need_not_be_hashed_by_the_next_run(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = ArtifactStore(shutil.copytree(used.store.root, tmp_path / "copy"))
    fsck(copy)
    monkeypatch.setattr("alphaquant.store.artifacts.sha256_of", lambda path: pytest.fail(str(path)))
    assert run_stage(ALPHA, copy, {}).state == "cached"


def test_progress_counts_files(used: Used) -> None:
    seen: list[tuple[str, int, int]] = []

    class Watching:
        def update(self, what: str, done: int, total: int) -> None:
            seen.append((what, done, total))

        def note(self, message: str) -> None: ...

    with reporting_to(Watching()):
        fsck(used.store)
    assert [done for what, done, _ in seen if what == "files"] == list(range(8))
    assert ("records", 5, 5) in seen


class _Meanwhile:
    """Does something once, when the last file was looked at."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def update(self, what: str, done: int, total: int) -> None:
        """Act at the end."""
        if what == "files" and done == total:
            self._act()

    def note(self, message: str) -> None:
        """Not used."""


def test_an_artifact_that_vanishes_meanwhile_is_no_damage(used: Used) -> None:
    folder = used.file(used.alpha, "one").parent
    with reporting_to(_Meanwhile(lambda: shutil.rmtree(folder))):
        assert fsck(used.store).findings == []


def test_an_artifact_that_a_run_has_mended_meanwhile_is_left_where_it_is(used: Used) -> None:
    overwrite(used.file(used.alpha, "one"), "abc")
    with reporting_to(_Meanwhile(lambda: used.run("run-3"))):
        assert fsck(used.store).findings == []
    assert used.file(used.alpha, "one").read_text() == "one"


def test_runs_at_work_are_no_damage(used: Used) -> None:
    stop, errors = threading.Event(), []

    def work() -> None:
        try:
            for number in range(10**6):
                if stop.is_set():
                    return
                run_stage(QUANTIZE, ArtifactStore(used.store.root), {}, force=True)
                run_stage(ALPHA, ArtifactStore(used.store.root), {}, force=number % 2 == 0)
                used.file(used.alpha, "one").parent.rename(used.store.root / f"gone-{number}")
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    found = [finding for _ in range(20) for finding in fsck(used.store).findings]
    stop.set()
    thread.join()
    assert (found, errors) == ([], [])


def test_a_store_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no artifact store at"):
        fsck(ArtifactStore(tmp_path / "missing"))
