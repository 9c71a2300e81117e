"""gc and fsck of a store in a bucket: the same promises as in a folder, without a lock that spans machines."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import StoreError, UserError
from alphaquant.progress import reporting_to
from alphaquant.store import bucket
from alphaquant.store.artifacts import MANIFEST, REFS, ArtifactRef
from alphaquant.store.bucket import Bucket, Entry
from alphaquant.store.inspection import folder_of
from alphaquant.store.remote import RemoteStore
from alphaquant.store.runs import run_ids
from alphaquant.store.stage import Stage, Workbench, run_stage
from alphaquant.store.usage import note_use
from alphaquant.upkeep.fsck import Finding, fsck
from alphaquant.upkeep.gc import gc
from alphaquant.upkeep.gc_report import Report
from alphaquant.upkeep.marking import Keep
from flows.preflight import open_store
from tests.store import contents
from tests.store.s3 import S3Server, s3_server
from tests.upkeep.past import old_record, old_run

LONG = 400 * 86400.0
_PAGE = 20
"""Files per page of the server's listings."""
_LOOSE = _PAGE // 2  # of two files each


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(_PAGE))
        with s3_server() as running:
            running.bucket("store")
            yield running


class Past:
    """A bucket as it was left long ago, seen from machines with caches of their own."""

    def __init__(self, url: str, caches: Path, patch: pytest.MonkeyPatch) -> None:
        self.url = url
        self._caches = caches
        self._patch = patch
        self._old: set[str] = set()
        self._date_files()

    def machine(self, name: str = "a") -> RemoteStore:
        """The store as a machine sees it; nobody has it open when the result is dropped."""
        self._patch.setenv("ALPHAQUANT_CACHE", str(self._caches / name))
        store = open_store(self.url)
        assert isinstance(store, RemoteStore)
        return store

    def age(self, *machines: str) -> None:
        """Make everything in the bucket, and in the caches of these machines, old."""
        self._old |= {*self.machine().remote.files("")}
        for name in machines:
            for folder in self.machine(name).root.glob("objects/*/*/*"):
                os.utime(folder, (time.time() - LONG, time.time() - LONG))

    def artifact(self, text: str, kind: str = "toy", file: str = "file") -> ArtifactRef:
        """One file with this text."""
        return contents.keep(self.machine(), {file: text}, kind)

    def whole(self, *parts: ArtifactRef) -> ArtifactRef:
        """An artifact that is made of others."""
        listing = {f"part-{index}": part.model_dump() for index, part in enumerate(parts)}
        return self.artifact(json.dumps(listing), "whole", REFS)

    def run(self, *refs: ArtifactRef, days_ago: float = 100, **more: Any) -> str:
        """A run that made these artifacts."""
        return old_run(self.machine(), refs, days_ago, **more)

    def record(self, ref: ArtifactRef, stage: str, number: int, days_ago: float = 100) -> str:
        """A key that led to the artifact; returns the name of its file."""
        return old_record(self.machine(), ref, stage, number, days_ago)

    def has(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is whole for a machine that has nothing itself."""
        return self.machine(uuid.uuid4().hex).problem(ref) is None

    def gc(self, keep: Keep | None = None, *, delete: bool = True, **more: Any) -> Report:
        """Collect."""
        return gc(self.machine("collector"), keep, delete=delete, **more)

    def names(self, folder: str = "") -> list[str]:
        """What is in the bucket."""
        return sorted(name for name in self.machine().remote.files(folder))

    def _date_files(self) -> None:
        """Let listings tell old times; a file that is written again is new."""
        listing = Bucket.files

        def files(at: Bucket, folder: str) -> dict[str, Entry]:
            start = f"{folder}/".lstrip("/")
            return {
                name: Entry(e.size, e.modified - LONG) if start + name in self._old else e
                for name, e in listing(at, folder.rstrip("/")).items()
            }

        def renewing(name: str, target: Callable[..., list[str]]) -> None:
            honest = getattr(Bucket, name)

            def call(at: Bucket, *given: Any) -> Any:
                self._old -= {*target(*given)}
                return honest(at, *given)

            self._patch.setattr(Bucket, name, call)

        self._patch.setattr(Bucket, "files", files)
        renewing("write", lambda name, content: [name])
        renewing("copy", lambda name, to: [to])
        renewing("upload", lambda folder, names, to: [f"{to}/{name}" for name in names])


@pytest.fixture(scope="module")
def driver(server: S3Server) -> Iterator[Any]:
    """One connection: opening another takes longer than all that a test asks of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield bucket._open("s3://store")[0]


@pytest.fixture
def past(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Past:
    """An empty place in the bucket."""
    monkeypatch.setattr(bucket, "_open", lambda url: (driver, url.removeprefix("s3://")))
    return Past(f"s3://store/{uuid.uuid4().hex}", tmp_path, monkeypatch)


def test_what_no_run_refers_to_goes_over_many_pages_and_the_rest_stays(past: Past) -> None:
    part, loose = past.artifact("part"), [past.artifact(f"loose {n}") for n in range(_LOOSE)]
    whole = past.whole(part)
    run_id = past.run(whole)
    past.age()
    told = past.gc(delete=False)
    assert past.has(loose[0])
    done = past.gc()
    assert told.as_json() | {"deleted": True} == done.as_json()
    assert [past.has(ref) for ref in (whole, part, *loose)] == [True, True] + [False] * _LOOSE
    assert past.names("objects") == sorted(
        [f"{folder_of(ref)}/{name}"[8:] for ref, name in ((whole, REFS), (part, "file"))]
        + [f"{folder_of(ref)}/{MANIFEST}"[8:] for ref in (whole, part)]
    )
    assert done.runs_kept == [run_id]
    toys = next(kind for kind in done.kinds if kind.kind == "toy")
    size = (len("loose 0") + _manifest_size()) * _LOOSE
    assert (toys.removed, toys.freed) == (_LOOSE, size)
    assert (toys.kept, toys.kept_bytes) == (1, len("part") + _manifest_size())


def _manifest_size() -> int:
    entry = {"path": "file", "size": 1, "sha256": "0" * 64}
    return len(json.dumps([entry], indent=1))


def test_no_artifact_costs_a_question(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        past.artifact(f"loose {number}")
    past.age()
    asked: list[str] = []
    for name in ("read", "files"):
        honest = getattr(Bucket, name)

        def spy(self: Bucket, what: str, _honest: Any = honest) -> Any:
            asked.append(what)
            return _honest(self, what)

        monkeypatch.setattr(Bucket, name, spy)
    assert past.gc(delete=False).removed == 10
    assert len(asked) < 10


@pytest.mark.parametrize(
    ("keep", "stay"),
    [(Keep(), "abcd"), (Keep(runs=1), "d"), (Keep(days=15), "cd"), (Keep(tags=("best",)), "b")],
)
def test_runs_are_kept_by_number_age_and_tag(past: Past, keep: Keep, stay: str) -> None:
    refs = {name: past.artifact(name) for name in "abcd"}
    for name, age in {"a": 40, "b": 30, "c": 10, "d": 5}.items():
        past.run(refs[name], days_ago=age, tags=["best"] if name == "b" else [])
    past.age()
    past.gc(keep)
    assert "".join(name for name in "abcd" if past.has(refs[name])) == stay
    assert len(run_ids(past.machine())) == len(stay)


def test_what_another_machine_uses_stays_with_its_parts(past: Past) -> None:
    part = past.artifact("part")
    whole, other = past.whole(part), past.artifact("other")
    past.age()
    note_use(past.machine("b"), whole)
    past.gc()
    assert [past.has(ref) for ref in (whole, part, other)] == [True, True, False]
    assert past.names("used") == ["clock", f"whole/{whole.digest}"]
    past.age()
    assert past.gc().left_over == {"marks of artifacts that are gone": 1}
    assert not past.has(part)
    assert past.names("used") == ["clock"]


def test_a_hit_and_a_read_are_uses_that_are_told_once(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(out: Path, bench: Workbench) -> None:
        (out / "file").write_text("result")

    stage, read = Stage("toy", body, __name__), past.artifact("read")
    ref = run_stage(stage, past.machine(), {}).ref
    assert ref is not None
    past.age()
    store, written = past.machine("b"), []
    honest = Bucket.write
    monkeypatch.setattr(
        Bucket,
        "write",
        lambda self, name, content: (written.append(name), honest(self, name, content)),
    )
    for _ in range(2):
        assert run_stage(stage, store, {}).state == "cached"
        store.path(read)
    assert sorted(written) == sorted(f"used/toy/{one.digest}" for one in (ref, read))
    assert past.gc().removed == 0


@pytest.mark.parametrize("batch", [1, 100])
def test_what_is_used_while_gc_is_at_work_stays_or_is_missed(
    past: Past, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("alphaquant.upkeep.gc_bucket._BATCH", batch)
    part = past.artifact("part")
    whole, other = past.whole(part), past.artifact("other")
    past.age()
    user, seen = past.machine("b"), []
    honest = Bucket.remove

    def use_meanwhile(self: Bucket, names: Any) -> None:
        names = list(names)
        honest(self, names)
        if not seen and any(MANIFEST in name for name in names):
            note_use(user, whole)
            seen.append(user.problem(whole))

    monkeypatch.setattr(Bucket, "remove", use_meanwhile)
    report = past.gc()
    assert seen == [f"damaged: {MANIFEST} is missing"]
    assert report.removed == 1
    assert [past.has(ref) for ref in (whole, part, other)] == [True, True, False]


def test_who_completes_an_artifact_waits_for_gc(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphaquant.store.lease.POLL_SECONDS", 0.1)
    ref = past.artifact("same")
    past.machine().remote.remove([f"{folder_of(ref)}/{MANIFEST}"])
    done = threading.Event()
    maker = past.machine("a")

    def complete() -> None:
        assert maker.problem(ref) is None
        done.set()

    thread = threading.Thread(target=complete)
    with past.machine("collector").use.removing("gc"):
        thread.start()
        assert not done.wait(0.5)
        assert past.names("used") == [f"toy/{ref.digest}"]
    thread.join()
    assert past.has(ref)


def test_who_removes_in_a_bucket_keeps_nobody_on_its_machine_waiting(past: Past) -> None:
    ref, store = past.artifact("read"), past.machine()
    reader = threading.Thread(target=lambda: store.path(ref))
    with past.machine().use.removing("gc"):
        reader.start()
        reader.join(10)
        waits = reader.is_alive()
    reader.join()
    assert not waits


def test_an_upload_that_broke_off_goes_when_it_is_old(past: Past) -> None:
    ref = past.artifact("half")
    past.machine().remote.remove([f"{folder_of(ref)}/{MANIFEST}"])
    assert past.gc().removed == 0
    assert fsck(past.machine("b")).left_over == {"unfinished uploads": 1}
    past.age()
    assert past.gc().removed == 1
    assert past.names("objects") == []


def test_runs_elsewhere_are_believed_for_a_month(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = {"status": "running", "host": "elsewhere", "process": 1}
    silent, lively = past.artifact("silent"), past.artifact("lively")
    past.run(silent, **at_work)
    past.age()
    run_id = past.run(lively, **at_work)
    past._old.add(f"{folder_of(lively)}/file")
    assert past.gc(Keep(runs=0)).runs_kept == [run_id]
    assert (past.has(silent), past.has(lively)) == (False, True)


def test_blocks_of_an_unfinished_run_stay_while_the_run_does(past: Past) -> None:
    block = past.artifact("block", "quantize-block")
    early = past.artifact("early", "quantize-block")
    past.record(early, "quantize-block", 1, days_ago=11)
    past.age()
    past.record(block, "quantize-block", 0, days_ago=9)
    past.run(past.artifact("alpha"), days_ago=10, status="interrupted")
    past._old |= {name for name in past.names() if name.startswith("objects")}
    past.gc()
    assert (past.has(block), past.has(early)) == (True, False)
    past.gc(Keep(runs=0))
    assert not past.has(block)


def test_a_grace_that_marks_cannot_keep_is_refused(past: Past) -> None:
    past.artifact("loose")
    with pytest.raises(UserError, match=r"0 hours is too short.*once an hour.*--grace 2"):
        past.gc(Keep(grace_hours=0))


def test_a_bucket_without_a_store_is_the_users_error(past: Past) -> None:
    for verb in (gc, fsck):
        with pytest.raises(UserError, match=r"no artifact store at s3://store"):
            verb(past.machine())


def test_a_torn_manifest_and_a_whole_that_tells_no_parts_stop_gc(
    past: Past, server: S3Server
) -> None:
    loose, whole = past.artifact("loose"), past.whole(past.artifact("part"))
    run_id = past.run(whole)
    past.age()
    server.write(f"{past.url}/{folder_of(whole)}/{REFS}", b"{}")
    with pytest.raises(StoreError, match=r"is damaged, so what it needs is not known.*fsck"):
        past.gc()
    server.write(f"{past.url}/runs/{run_id}.json", b'{"run_id": ')
    with pytest.raises(StoreError, match=r"manifest s3://.* is torn.*Nothing was removed.*fsck"):
        past.gc()
    assert past.has(loose)
    assert len(fsck(past.machine("b")).findings) == 2
    past.gc()
    assert not past.has(loose)


def test_remains_go_and_what_is_needed_stays(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphaquant.upkeep.gc_bucket.RECORDS_PER_STAGE", 1)
    there, gone = past.artifact("there"), past.artifact("gone")
    past.run(there)
    old = [past.record(gone, "toy", 1), past.record(there, "toy", 2)]
    lying = past.machine().remote
    for name in ("toy-k1.json", "toy-k1.failed.json", "toy-k3.json"):
        lying.write(f"jobs/{name}", b"{}")
    lying.write("leases/toy-k1/00000001.json", b"{}")
    past.age()
    past.record(gone, "toy", 3)
    lying.write("jobs/toy-k2.failed.json", b"{}")
    lying.write("leases/toy-k2/00000001.json", b"{}")
    report = past.gc()
    assert report.left_over == {"leases of killed processes": 1, "jobs that ended": 3}
    assert past.names("jobs") == ["toy-k2.failed.json"]
    assert past.names("leases") == ["toy-k2/00000001.json"]
    assert report.records_removed == 1
    assert old[0] not in past.names()
    assert old[1] in past.names()


def test_this_machines_cache_is_trimmed_to_what_was_read_lately(past: Past) -> None:
    kept, loose, unsent = past.artifact("kept"), past.artifact("loose"), past.artifact("unsent")
    past.run(kept)
    collector = past.machine("collector")
    for ref in (kept, loose, unsent):
        collector.path(ref)
    past.age("collector")
    del collector
    past.machine().remote.remove([f"{folder_of(unsent)}/{name}" for name in (MANIFEST, "file")])
    folder = past.machine("collector").place(unsent)
    os.utime(folder, (time.time() - 20 * 86400,) * 2)
    report = past.gc(delete=False)
    size = len("kept") + len("loose") + 2 * _manifest_size()
    assert report.cache is not None
    assert (report.cache.removed, report.cache.freed, report.cache.kept) == (2, size, 1)
    assert report.removed == 1
    assert past.gc().cache == report.cache
    store = past.machine("collector")
    assert not store.place(kept).exists()
    assert (store.path(kept) / "file").read_text() == "kept"
    assert past.machine("collector").place(unsent).exists()
    (reader,) = (store.root / "locks" / "users").iterdir()
    for path, days in ((reader, 50), (store.place(kept), 2), (store.place(unsent), 40)):
        os.utime(path, (time.time() - days * 86400,) * 2)
    past.gc()
    assert [store.place(ref).exists() for ref in (kept, unsent)] == [True, True]
    place = store.place(kept)
    del store
    past.gc()
    assert not place.exists()


class Used:
    """A bucket that one run has used, on a machine whose cache is gone."""

    def __init__(self, past: Past) -> None:
        self.past = past
        part = past.artifact("part", "quantize-block")
        self.ref, self.whole = past.artifact("alpha", "alpha"), past.whole(part)
        self.part = part
        self.records = [
            past.record(self.ref, "alpha", 0),
            past.record(part, "quantize-block", 3),
        ]
        self.run_id = past.run(self.ref, self.whole)

    def finding(self, machine: str = "checker", **settings: Any) -> Finding:
        """The one thing that is wrong."""
        (finding,) = fsck(self.past.machine(machine), **settings).findings
        return finding


@pytest.fixture
def used(past: Past) -> Used:
    """One run, three artifacts."""
    return Used(past)


def test_a_sound_bucket_is_said_to_be_sound(used: Used) -> None:
    for fast in (False, True):
        report = fsck(used.past.machine("checker"), fast=fast)
        assert report.as_json()["sound"] is True
        assert (report.artifacts, report.records, report.runs) == (3, 2, 1)
        assert report.bytes > len("alpha") + len("part")
    assert not (used.past.machine("checker").root / "objects").exists()


def test_harmed_files_are_put_aside_by_the_server_and_the_artifact_is_a_miss(
    used: Used, server: S3Server
) -> None:
    server.write(f"{used.past.url}/{folder_of(used.ref)}/file", b"ALPHA")
    assert fsck(used.past.machine("checker"), fast=True).findings == []
    told = used.finding(repair=False)
    assert (told.problems, told.moved_to) == (["the content of file was changed"], None)
    assert not used.past.names("quarantine")
    finding = used.finding()
    assert (finding.problems, finding.reruns) == (told.problems, ["alpha"])
    assert (finding.runs, finding.mended) == ([used.run_id], False)
    assert finding.moved_to is not None
    assert server.read(f"{finding.moved_to}/file") == b"ALPHA"
    assert not used.past.has(used.ref)
    assert fsck(used.past.machine("checker")).findings == []
    assert used.past.gc().quarantined == 1
    assert used.past.names("quarantine")
    used.past.gc(quarantine=True)
    assert not used.past.names("quarantine")


def test_a_machine_with_a_sound_copy_mends_what_was_harmed(used: Used, server: S3Server) -> None:
    server.write(f"{used.past.url}/{folder_of(used.ref)}/file", b"ALPHA")
    finding = used.finding("a")
    assert (finding.mended, finding.reruns) == (True, [])
    assert used.past.has(used.ref)
    assert fsck(used.past.machine("checker")).findings == []


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda s, at: s.delete(f"{at}/file"), "file is missing"),
        (lambda s, at: s.write(f"{at}/file", b""), "file has 0 bytes instead of 5"),
        (lambda s, at: s.write(f"{at}/{MANIFEST}", b"[]"), f"{MANIFEST} was changed"),
        (lambda s, at: s.write(f"{at}/deep/odd", b""), "deep/odd does not belong to it"),
    ],
)
def test_what_listings_and_manifests_tell_is_found_by_a_fast_check_too(
    used: Used, server: S3Server, harm: Any, problem: str, fast: bool
) -> None:
    harm(server, f"{used.past.url}/{folder_of(used.ref)}")
    finding = used.finding(fast=fast)
    assert finding.problems == [problem]
    assert finding.reruns == ([] if "belong" in problem else ["alpha"])
    assert used.past.has(used.ref) == ("belong" in problem)
    assert fsck(used.past.machine("checker")).findings == []


def test_a_lost_part_is_said_by_its_whole(used: Used) -> None:
    names = [f"{folder_of(used.part)}/{name}" for name in (MANIFEST, "file")]
    used.past.machine().remote.remove(names)
    finding = used.finding()
    assert finding.problems == [f"its part part-0 ({used.part}) is missing"]
    assert (finding.reruns, finding.moved_to) == (["block 3 of quantize"], None)


def test_torn_records_and_manifests_are_put_aside(used: Used, server: S3Server) -> None:
    server.write(f"{used.past.url}/{used.records[0]}", b'{"stage": ')
    server.write(f"{used.past.url}/runs/{used.run_id}.json", b"[]")
    record, manifest = fsck(used.past.machine("checker")).findings
    assert record.what == f"record {used.records[0][5:-5]}"
    assert record.reruns == ["alpha"]
    assert manifest.what == f"manifest of run {used.run_id}"
    assert (record.moved_to or "").startswith(f"{used.past.url}/quarantine/keys/alpha/")
    assert fsck(used.past.machine("checker")).findings == []


def test_a_torn_record_that_another_fsck_puts_aside_meanwhile_is_no_failure(
    used: Used, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.write(f"{used.past.url}/{used.records[0]}", b'{"stage": ')
    honest = Bucket.copy

    def copy(self: Bucket, name: str, to: str) -> None:
        server.delete(f"{used.past.url}/{name}")
        honest(self, name, to)

    monkeypatch.setattr(Bucket, "copy", copy)
    assert used.finding().what == f"record {used.records[0][5:-5]}"


@pytest.mark.parametrize(("moment", "repair"), [("files", False), ("records", True)])
def test_an_artifact_that_was_mended_meanwhile_is_left_where_it_is(
    used: Used, server: S3Server, moment: str, repair: bool
) -> None:
    file = f"{used.past.url}/{folder_of(used.ref)}/file"
    server.write(file, b"")

    class Meanwhile:
        def update(self, what: str, done: int, total: int) -> None:
            if what == moment and done == total:
                server.write(file, b"alpha")

        def note(self, message: str) -> None: ...

    with reporting_to(Meanwhile()):
        assert fsck(used.past.machine("checker"), repair=repair).findings == []
    assert used.past.has(used.ref)
