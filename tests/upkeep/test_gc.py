"""gc: what kept runs, unfinished work and living processes need stays, the rest goes, and nobody is hurt."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import StoreError, UserError
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import run_ids
from alphaquant.store.stage import Stage, Workbench, run_stage
from alphaquant.store.units import BlockCache
from alphaquant.store.usage import note_use
from alphaquant.upkeep.fsck import fsck
from alphaquant.upkeep.gc import gc
from alphaquant.upkeep.inventory import artifacts
from alphaquant.upkeep.marking import Keep
from tests.store import contents
from tests.upkeep.past import old_record, old_run

_CONTEXT = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
AT_ONCE = Keep(grace_hours=0)
LONG_AGO = time.time() - 400 * 86400


class Past:
    """A store as it was left long ago: nobody has it open, and nothing in it was used lately."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def artifact(self, text: str, kind: str = "toy") -> ArtifactRef:
        """One file with this text."""
        return self._old(contents.keep(ArtifactStore(self.root), {"file": text}, kind))

    def whole(self, *parts: ArtifactRef) -> ArtifactRef:
        """An artifact that is made of others."""
        listing = {f"part-{index}": part.model_dump() for index, part in enumerate(parts)}
        return self._old(
            contents.keep(ArtifactStore(self.root), {"refs.json": json.dumps(listing)}, "whole")
        )

    def run(self, *refs: ArtifactRef, days_ago: float = 100, **more: Any) -> str:
        """A run that made these artifacts."""
        return old_run(ArtifactStore(self.root), refs, days_ago, **more)

    def record(self, ref: ArtifactRef, stage: str, number: int, days_ago: float = 100) -> Path:
        """A key that led to the artifact."""
        path = self.root / old_record(ArtifactStore(self.root), ref, stage, number, days_ago)
        os.utime(path, (time.time() - days_ago * 86400,) * 2)
        return path

    def has(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is there and sound."""
        return ArtifactStore(self.root).problem(ref) is None

    def gc(self, keep: Keep = AT_ONCE, *, delete: bool = True, **more: Any) -> Any:
        """Collect."""
        return gc(ArtifactStore(self.root), keep, delete=delete, **more)

    def _old(self, ref: ArtifactRef) -> ArtifactRef:
        os.utime(ArtifactStore(self.root).place(ref), (LONG_AGO, LONG_AGO))
        return ref


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """An old, empty store."""
    return Past(tmp_path / "store")


def test_what_no_run_refers_to_goes_and_the_rest_stays(past: Past) -> None:
    made, loose = past.artifact("made"), past.artifact("loose!")
    past.run(made)
    report = past.gc()
    assert (past.has(made), past.has(loose)) == (True, False)
    assert (report.removed, report.freed, report.deleted) == (
        1,
        len("loose!") + _manifest_size(),
        True,
    )
    (kind,) = report.kinds
    assert (kind.kept, kind.kept_bytes) == (1, len("made") + _manifest_size())


def _manifest_size() -> int:
    entry = {"path": "file", "size": 1, "sha256": "0" * 64}
    return len(json.dumps([entry], indent=1))


def test_a_dry_run_tells_the_same_and_removes_nothing(past: Past) -> None:
    loose = past.artifact("loose")
    run_id = past.run(past.artifact("old"))
    before = sorted(past.root.rglob("*"))
    keep = Keep(runs=0, grace_hours=0)
    told = past.gc(keep, delete=False)
    assert sorted(past.root.rglob("*")) == before
    assert past.has(loose)
    assert told.runs_removed == [run_id]
    done = past.gc(keep)
    assert told.as_json() | {"deleted": True, "left_over": {}} == done.as_json() | {"left_over": {}}


def test_parts_of_what_is_kept_stay(past: Past) -> None:
    part = past.artifact("part")
    past.run(past.whole(past.whole(part)))
    assert past.gc().removed == 0
    assert past.has(part)


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(), "abcd"),
        (Keep(runs=1), "d"),
        (Keep(runs=0), ""),
        (Keep(runs=2), "cd"),
        (Keep(days=15), "cd"),
        (Keep(days=1), ""),
        (Keep(tags=("best",)), "b"),
        (Keep(tags=("best", "paper")), "ab"),
        (Keep(runs=1, tags=("best",)), "bd"),
        (Keep(grace_hours=24 * 12, runs=0), "cd"),
    ],
)
def test_runs_are_kept_by_number_age_and_tag(past: Past, keep: Keep, stay: str) -> None:
    refs = {name: past.artifact(name) for name in "abcd"}
    tags = {"a": ["paper"], "b": ["best", "odd"]}
    runs = {
        name: past.run(refs[name], days_ago=age, tags=tags.get(name, []))
        for name, age in {"a": 40, "b": 30, "c": 10, "d": 5}.items()
    }
    report = past.gc(Keep(keep.runs, keep.days, keep.tags, min(keep.grace_hours, 24 * 12)))
    kept = "".join(name for name in "abcd" if past.has(refs[name]))
    assert kept == stay
    assert report.runs_kept == [runs[name] for name in reversed(stay)]
    assert run_ids(ArtifactStore(past.root)) == report.runs_kept


def test_what_was_used_lately_stays_with_its_parts(past: Past) -> None:
    part = past.artifact("part")
    whole, other = past.whole(part), past.artifact("other")
    note_use(ArtifactStore(past.root), whole)
    past.gc(Keep())
    assert (past.has(whole), past.has(part), past.has(other)) == (True, True, False)
    past.gc(AT_ONCE)
    assert not past.has(part)


def test_a_hit_is_a_use(past: Past) -> None:
    def body(out: Path, bench: Workbench) -> None:
        (out / "file").write_text("result")

    stage = Stage("toy", body, __name__)
    ref = run_stage(stage, ArtifactStore(past.root), {}).ref
    assert ref is not None
    past._old(ref)
    run_stage(stage, ArtifactStore(past.root), {})
    past.gc(Keep())
    assert past.has(ref)


def test_a_block_that_was_found_is_used(past: Past) -> None:
    def cache() -> BlockCache:
        return BlockCache(ArtifactStore(past.root), "toy-block", {}, {})

    cache().get(0, {})
    block = cache().put(0, {}, lambda folder: (folder / "file").write_text("block") and None)
    os.utime(block, (LONG_AGO, LONG_AGO))
    assert cache().get(0, {}) == block
    past.gc(Keep())
    assert block.exists()


def test_blocks_of_an_unfinished_run_stay_while_the_run_does(past: Past) -> None:
    blocks = [past.artifact(f"block {index}", "quantize-block") for index in range(2)]
    for index, block in enumerate(blocks):
        past.record(block, "quantize-block", index, days_ago=9)
    alpha = past.artifact("alpha")
    past.run(alpha, days_ago=10, status="interrupted")
    assert past.gc().removed == 0
    past.gc(Keep(runs=0, grace_hours=0))
    assert not any(past.has(ref) for ref in (alpha, *blocks))


def test_blocks_of_a_finished_artifact_share_its_fate(past: Past) -> None:
    block = past.artifact("block", "quantize-block")
    past.record(block, "quantize-block", 0, days_ago=9)
    past.whole(block)
    past.run(past.artifact("alpha"), days_ago=10, status="interrupted")
    past.gc()
    assert not past.has(block)


def test_blocks_made_before_any_unfinished_run_go(past: Past) -> None:
    block = past.artifact("block", "quantize-block")
    past.record(block, "quantize-block", 0, days_ago=11)
    past.run(past.artifact("alpha"), days_ago=10, status="interrupted")
    past.gc()
    assert not past.has(block)


def test_a_run_at_work_is_kept_and_one_whose_process_died_is_not(past: Past) -> None:
    process = _CONTEXT.Process(target=int)
    process.start()
    process.join()
    at_work = {"status": "running", "host": socket.gethostname(), "process": os.getpid()}
    runs = {
        "here": past.run(**at_work),
        "there": past.run(**at_work | {"host": "elsewhere", "process": 1}),
        "dead": past.run(**at_work | {"process": process.pid}),
        "ended": past.run(**at_work | {"status": "completed"}),
    }
    report = past.gc(Keep(runs=0, grace_hours=0))
    assert {*report.runs_kept} == {runs["here"], runs["there"]}


def _use_and_wait(root: Path, ref: ArtifactRef, used: Event) -> None:
    store = ArtifactStore(root)
    note_use(store, ref)
    used.set()
    time.sleep(60)


def test_what_a_living_process_has_used_stays_until_it_is_killed(past: Past) -> None:
    ref, other = past.artifact("used"), past.artifact("not used")
    used = _CONTEXT.Event()
    user = _CONTEXT.Process(target=_use_and_wait, args=(past.root, ref, used))
    user.start()
    try:
        assert used.wait(10)
        past.gc()
        assert (past.has(ref), past.has(other)) == (True, False)
    finally:
        assert user.pid is not None
        os.kill(user.pid, signal.SIGKILL)
        user.join()
    past.gc()
    assert not past.has(ref)
    assert list((past.root / "locks" / "users").iterdir()) == []


def test_what_was_made_anew_with_equal_bytes_stays_for_its_maker(past: Past) -> None:
    ref = past.artifact("same")
    maker = ArtifactStore(past.root)
    assert contents.keep(maker, {"file": "same"}) == ref
    past.gc()
    assert past.has(ref)
    del maker
    past.gc()
    assert not past.has(ref)


def test_a_result_stays_between_its_making_and_the_record_of_it(past: Past) -> None:
    maker = ArtifactStore(past.root)
    ref = contents.keep(maker, {"file": "new"})
    past.gc()
    assert maker.problem(ref) is None


def test_a_torn_manifest_stops_gc_until_fsck_has_put_it_aside(past: Past) -> None:
    loose = past.artifact("loose")
    run_id = past.run(past.artifact("made"))
    (past.root / "runs" / f"{run_id}.json").write_text('{"run_id": ')
    with pytest.raises(StoreError, match=r"manifest .* is torn.*Nothing was removed.*fsck"):
        past.gc()
    assert past.has(loose)
    fsck(ArtifactStore(past.root))
    past.gc()
    assert not past.has(loose)


def test_an_artifact_that_does_not_tell_its_parts_stops_gc(past: Past) -> None:
    part = past.artifact("part")
    whole = past.whole(part)
    past.run(whole)
    listing = ArtifactStore(past.root).place(whole) / "refs.json"
    listing.chmod(0o644)
    listing.write_text('{"part-0": "nonsense"}')
    with pytest.raises(StoreError, match=r"is damaged, so what it needs is not known.*fsck"):
        past.gc()
    assert past.has(part)


def test_files_that_products_share_are_not_counted_and_not_harmed(
    past: Past, tmp_path: Path
) -> None:
    ref = past.artifact("weights")
    product = tmp_path / "product"
    product.hardlink_to(ArtifactStore(past.root).place(ref) / "file")
    assert past.gc().freed == _manifest_size()
    assert product.read_text() == "weights"


def test_a_file_that_two_doomed_artifacts_share_is_counted_once(past: Past) -> None:
    one, two = past.artifact("weights"), past.artifact("weights", "other")
    store = ArtifactStore(past.root)
    (store.place(two) / "file").unlink()
    (store.place(two) / "file").hardlink_to(store.place(one) / "file")
    for ref in (one, two):
        past._old(ref)
    assert past.gc().freed == len("weights") + 2 * _manifest_size()


def test_records_outlive_their_artifacts_for_a_while(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphaquant.upkeep.gc.RECORDS_PER_STAGE", 2)
    there, gone = past.artifact("there"), past.artifact("gone")
    past.run(there)
    paths = {
        "young": past.record(gone, "toy", 1, days_ago=10),
        "second": past.record(gone, "toy", 2, days_ago=100),
        "third": past.record(gone, "toy", 3, days_ago=110),
        "there": past.record(there, "toy", 4, days_ago=120),
    }
    assert past.gc().records_removed == 1
    assert [name for name, path in paths.items() if not path.exists()] == ["third"]


def test_jobs_go_when_their_result_is_there_or_they_are_very_old(past: Past) -> None:
    ref = past.artifact("made")
    past.run(ref)
    record = past.record(ref, "toy", 1, days_ago=5)
    jobs = {  # days since it was written, and whether it stays
        f"toy-{record.stem}.json": (6, False),
        f"other-{record.stem}.json": (6, True),
        "toy-never.json": (40, False),
        "toy-waiting.json": (6, True),
        "toy-waiting.failed.json": (6, False),
        "toy-new.failed.json": (0, True),
    }
    for name, (days, _) in jobs.items():
        ArtifactStore(past.root).write_json(f"jobs/{name}", {})
        os.utime(past.root / "jobs" / name, (time.time() - days * 86400,) * 2)
    assert past.gc(Keep()).left_over == {"jobs that ended": 3}
    left = {path.name for path in (past.root / "jobs").iterdir()}
    assert left == {name for name, (_, stays) in jobs.items() if stays}
    os.utime(record, (time.time() - 7 * 86400,) * 2)
    forced = past.root / "jobs" / f"toy-{record.stem}.json"
    ArtifactStore(past.root).write_json(f"jobs/{forced.name}", {})
    os.utime(forced, (time.time() - 6 * 86400,) * 2)
    past.gc(Keep())
    assert forced.exists()  # its result is older: a worker will be asked for it again


def test_remains_go_and_what_is_held_stays(past: Past) -> None:
    ref = past.artifact("loose")
    store = ArtifactStore(past.root)
    for name in ("tmp/dead", "logs/old.log", "logs/new.log", "keys/toy/.a.json." + "0" * 32):
        path = past.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name == "tmp/dead" else path.write_text("")
        if "new" not in name:
            os.utime(path, (LONG_AGO, LONG_AGO))
    with store.draft("toy") as living:
        os.utime(living.path, (LONG_AGO, LONG_AGO))
        (past.root / "tmp" / "dead").mkdir(exist_ok=True)  # the draft has swept it
        os.utime(past.root / "tmp" / "dead", (LONG_AGO, LONG_AGO))
        left_over = past.gc().left_over
        assert living.path.exists()
        living.discard()
    assert left_over == {
        "abandoned drafts": 1,
        "half-written files": 1,
        "checks of artifacts that are gone": 1,
        "old logs": 1,
    }
    assert not past.has(ref)
    assert not list((past.root / "objects").iterdir())
    assert [path.name for path in (past.root / "logs").iterdir()] == ["new.log"]


def test_quarantine_goes_only_when_asked(past: Past) -> None:
    ref = past.artifact("made")
    past.run(ref)
    (ArtifactStore(past.root).place(ref) / "file").unlink()
    fsck(ArtifactStore(past.root))
    aside = past.root / "quarantine" / "toy"
    assert past.gc().quarantined == 1
    assert len(list(aside.iterdir())) == 1
    assert past.gc(quarantine=True).quarantined == 1
    assert not list(aside.iterdir())


def test_stores_that_are_not_there_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no artifact store at"):
        gc(ArtifactStore(tmp_path / "missing"))


@pytest.mark.parametrize(("owner", "name"), [(os, "utime"), (Path, "mkdir")])
def test_a_store_that_may_not_be_written_is_the_users_error(
    past: Past, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    loose = past.artifact("loose")
    (past.root / "tmp").rmdir()

    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(UserError, match=r"Permission denied.*ALPHAQUANT_STORE"):
        past.gc()
    monkeypatch.undo()
    assert past.has(loose)


def test_a_store_on_a_disk_that_may_only_be_read_can_be_looked_at(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    past.artifact("loose")
    (past.root / "locks" / "users" / "dead").touch()
    honest = os.open

    def read(path: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return honest(path, flags, *mode)

    monkeypatch.setattr(os, "open", read)
    assert past.gc(delete=False).removed == 1


def _number(out: Path, bench: Workbench, *, number: int) -> None:
    cache = bench.block_cache(number=number // 2)
    for index in range(2):
        if cache.get(index, {}) is None:

            def write(folder: Path, text: str = f"{number // 2} {index}") -> None:
                (folder / "block").write_text(text)

            cache.put(index, {}, write)
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


def _hammer(root: Path, seed: int, stop: Event, said: Queue[dict[str, int] | str]) -> None:
    """Run stages as many short runs do, and read what they were given a moment later."""
    rng = random.Random(seed)
    counts = {"ran": 0, "cached": 0, "blocks": 0}
    try:
        while not stop.is_set():
            store = ArtifactStore(root)
            numbers = rng.sample(range(12), 4)
            results = [
                run_stage(Stage("n", _number, __name__), store, {"number": n}) for n in numbers
            ]
            time.sleep(rng.random() * 0.02)
            for number, result in zip(numbers, results, strict=True):
                counts[result.state] += 1
                counts["blocks"] += result.units_cached if result.state == "ran" else 0
                assert result.ref is not None
                for index, block in enumerate(store.children(result.ref).values()):
                    text = (store.path(block) / "block").read_text()
                    assert text == f"{number // 2} {index}"
        said.put(counts)
    except BaseException as error:  # noqa: BLE001
        said.put(f"{type(error).__name__}: {error}")


def test_gc_takes_nothing_from_runs_that_are_at_work(past: Past) -> None:
    past.artifact("makes the store")
    stop, said = _CONTEXT.Event(), _CONTEXT.Queue()
    runs = [
        _CONTEXT.Process(target=_hammer, args=(past.root, seed, stop, said)) for seed in range(3)
    ]
    for run in runs:
        run.start()
    removed = 0
    end = time.monotonic() + 4
    while time.monotonic() < end or (removed <= 20 and time.monotonic() < end + 30):
        removed += past.gc().removed
    stop.set()
    answers = [said.get(timeout=30) for _ in runs]
    for run in runs:
        run.join()
    assert [answer for answer in answers if isinstance(answer, str)] == []
    totals = {name: sum(answer[name] for answer in answers) for name in ("ran", "cached", "blocks")}
    assert removed > 20
    assert all(count > 5 for count in totals.values()), totals
    assert fsck(ArtifactStore(past.root)).findings == []


def test_nothing_is_left_half_removed_when_gc_is_killed(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [past.artifact(f"part {index}") for index in range(3)]
    past.whole(*parts)
    monkeypatch.setattr("alphaquant.upkeep.sweeping._BATCH", 2)
    honest = shutil.rmtree
    calls: list[Path] = []

    def killed(path: Path, **settings: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        honest(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with contextlib.suppress(KeyboardInterrupt):
        past.gc()
    monkeypatch.undo()
    assert 0 < len(artifacts(past.root)) < 4
    assert fsck(ArtifactStore(past.root)).findings == []
    past.gc()
    assert artifacts(past.root) == []
