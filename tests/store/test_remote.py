"""A store in a bucket: machines without a shared disk share their hits, and no harm goes unnoticed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import StoreError, UserError
from alphaquant.store import lease, remote
from alphaquant.store.artifacts import MANIFEST, REFS, ArtifactRef, ArtifactStore
from alphaquant.store.bucket import Bucket
from alphaquant.store.remote import RemoteStore
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage
from flows.preflight import check_places, open_store
from tests.store.contents import keep, overwrite
from tests.store.project import Project, ran
from tests.store.s3 import S3Server, s3_server

Host = Callable[[str], RemoteStore]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        running.bucket("store")
        yield running


@pytest.fixture
def url(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in the bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://store/{uuid.uuid4().hex}"


@pytest.fixture
def host(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The store as a machine with a name sees it: each has a cache of its own."""
    connection: dict[str, Bucket] = {}

    def make(name: str) -> RemoteStore:
        monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path / name))
        store = open_store(url)
        assert isinstance(store, RemoteStore)
        # opening a connection takes longer than all that a test asks of it
        store.remote = connection.setdefault("shared", store.remote)
        return store

    return make


def _at(store: RemoteStore, ref: ArtifactRef, name: str) -> str:
    return f"{store.location}/objects/{ref.kind}/{ref.digest[:2]}/{ref.digest}/{name}"


def _asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the bucket is asked from now on."""
    asked: list[str] = []
    for name in ("read", "files", "write"):
        honest = getattr(Bucket, name)

        def spy(self: Bucket, what: str, *rest: Any, _h: Any = honest, _n: str = name) -> Any:
            asked.append(f"{_n} {what}")
            return _h(self, what, *rest)

        monkeypatch.setattr(Bucket, name, spy)
    return asked


def test_what_one_machine_made_another_reads(host: Host) -> None:
    first, second = host("a"), host("b")
    ref = keep(first, {"a.txt": "one", "deep/b.txt": "two"})
    assert second.problem(ref) is None
    assert not second.place(ref).exists()
    folder = second.path(ref)
    assert folder == second.place(ref) != first.place(ref)
    assert (folder / "deep" / "b.txt").read_text() == "two"
    assert (folder / "a.txt").stat().st_mode & 0o222 == 0
    assert (folder / MANIFEST).read_bytes() == (first.place(ref) / MANIFEST).read_bytes()
    assert list((second.root / "tmp").iterdir()) == []


def test_the_bucket_is_laid_out_like_a_folder(host: Host, server: S3Server) -> None:
    store = host("a")
    ref = keep(store, {"a": "1"})
    store.write_json("keys/toy/k.json", {"x": 1})
    store.write_json("stat/toy/s.json", {"local": True})
    place = f"objects/toy/{ref.digest[:2]}/{ref.digest}"
    prefix = store.location.removeprefix("s3://store/")
    assert sorted(server.listing(store.location)) == [
        f"{prefix}/keys/toy/k.json",
        f"{prefix}/{place}/MANIFEST.json",
        f"{prefix}/{place}/a",
    ]


def test_records_are_the_buckets_and_checks_the_machines(host: Host, server: S3Server) -> None:
    first, second = host("a"), host("b")
    first.write_json("keys/toy/k.json", {"x": 1})
    first.write_json("stat/toy/s.json", {"local": True})
    assert second.read_json("keys/toy/k.json") == {"x": 1}
    assert second.read_json("keys/toy/none.json") is None
    assert second.read_json("stat/toy/s.json") is None
    assert first.names("stat/toy") == ["s"]
    second.write_json("keys/toy/k.json", {"x": 2})
    assert first.read_json("keys/toy/k.json") == {"x": 2}
    server.write(f"{first.location}/keys/toy/k.json", b'{"x"')
    assert first.read_json("keys/toy/k.json") is None


def test_names_come_newest_first_and_many_are_read_at_once(host: Host) -> None:
    store = host("a")
    for name in ("a", "c", "b"):
        store.write_json(f"runs/{name}.json", name)
        time.sleep(1.05)  # the server's clock counts seconds
    assert store.names("runs") == ["b", "c", "a"]
    assert store.names("keys/none") == []
    assert store.read_many(["runs/a.json", "runs/none.json", "runs/b.json"]) == ["a", None, "b"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s, at: s.delete(at("a")), "damaged: a is missing"),
        (lambda s, at: s.write(at("a"), b""), "damaged: a has 0 bytes instead of 1"),
        (lambda s, at: s.delete(at(MANIFEST)), "damaged: MANIFEST.json is missing"),
        (lambda s, at: s.write(at(MANIFEST), b"[]"), "damaged: MANIFEST.json was changed"),
        (lambda s, at: [s.delete(at(name)) for name in ("a", "b", MANIFEST)], "missing"),
    ],
)
def test_damage_in_the_bucket_is_a_miss_that_the_next_equal_artifact_repairs(
    host: Host, server: S3Server, harm: Any, said: str
) -> None:
    contents = {"a": "1", "b": "2"}
    first = host("a")
    ref = keep(first, contents)
    harm(server, lambda name: _at(first, ref, name))
    second = host("b")
    assert second.problem(ref) == said
    with pytest.raises(StoreError, match=r"s3://store/.*(missing|damaged)"):
        second.verify(ref)
    assert keep(second, contents) == ref
    assert host("c").problem(ref) is None
    assert (host("c").path(ref) / "a").read_text() == "1"


def test_what_only_this_machine_has_is_uploaded_when_it_is_looked_at(
    host: Host, server: S3Server
) -> None:
    first = host("a")
    ref = keep(first, {"a": "1", "b": "2"})
    for name in ("a", MANIFEST):
        server.delete(_at(first, ref, name))
    looking = host("a")
    looking.heals = False
    assert looking.problem(ref) is None
    assert host("b").problem(ref) is not None
    assert host("a").problem(ref) is None
    assert host("b").problem(ref) is None
    assert (host("b").path(ref) / "a").read_text() == "1"


def test_changed_content_is_found_when_it_is_fetched_and_is_a_miss_from_then_on(
    host: Host, server: S3Server
) -> None:
    first, second = host("a"), host("b")
    ref = keep(first, {"a": "1", "b": "2"})
    server.write(_at(first, ref, "b"), b"x")
    assert second.problem(ref) is None  # its size is right
    with pytest.raises(StoreError, match=r"content of b was changed.*same command again"):
        second.path(ref)
    assert not second.place(ref).exists()
    assert second.problem(ref) == "damaged: b is missing"
    assert keep(second, {"a": "1", "b": "2"}) == ref
    assert (host("c").path(ref) / "b").read_text() == "2"


def test_a_full_check_reads_every_content_here_and_there(host: Host, server: S3Server) -> None:
    first = host("a")
    ref = keep(first, {"a": "1"})
    server.write(_at(first, ref, "a"), b"x")
    assert host("b").problem(ref, full=True) == "damaged: the content of a was changed"
    assert first.problem(ref, full=True) is None  # it was whole here, and was uploaded again
    assert server.read(_at(first, ref, "a")) == b"1"
    assert host("b").problem(ref, full=True) is None


def test_damage_that_hides_in_the_cache_is_found_by_a_full_check_and_fetched_anew(
    host: Host,
) -> None:
    store = host("a")
    ref = keep(store, {"a": "1"})
    path = store.place(ref) / "a"
    before = path.stat()
    overwrite(path, "x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.problem(ref, full=True) is None
    assert (store.path(ref) / "a").read_text() == "1"


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: overwrite(folder / "a", "longer"),
        lambda folder: overwrite(folder / "a", "x"),
        lambda folder: (folder / "a").unlink(),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        shutil.rmtree,
    ],
)
def test_a_damaged_local_copy_is_fetched_anew(host: Host, harm: Any) -> None:
    host("a")
    store = host("b")
    ref = keep(host("a"), {"a": "1", "b": "2"})
    harm(store.path(ref))
    assert store.problem(ref) is None
    assert (store.path(ref) / "a").read_text() == "1"
    assert list((store.root / "tmp").iterdir()) == []


def test_an_upload_that_breaks_off_is_no_hit_and_is_completed_by_the_next(
    host: Host, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = host("a"), host("b")
    honest = Bucket.upload

    def break_off(self: Bucket, folder: Path, names: list[str], to: str) -> None:
        honest(self, folder, list(names)[:1], to)
        raise StoreError("the network went away")

    with monkeypatch.context() as broken:
        broken.setattr(Bucket, "upload", break_off)
        with pytest.raises(StoreError, match="network"):
            keep(first, {"a": "1", "b": "2"})
    (kept,) = first.root.glob("objects/toy/*/*")
    ref = ArtifactRef(kind="toy", digest=kept.name, size=2)
    assert second.problem(ref) == "damaged: MANIFEST.json is missing"
    sent: list[str] = []

    def count(self: Bucket, folder: Path, names: list[str], to: str) -> None:
        sent.extend(names)
        honest(self, folder, names, to)

    monkeypatch.setattr(Bucket, "upload", count)
    assert keep(first, {"a": "1", "b": "2"}) == ref
    assert sent == ["b"]
    assert second.problem(ref) is None


def test_an_equal_sound_artifact_is_not_uploaded_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(host("a"), {"a": "1"})
    asked = _asked(monkeypatch)
    keep(host("b"), {"a": "1"})
    assert [line for line in asked if line.startswith("write objects")] == []


def test_a_whole_of_parts_is_checked_without_fetching_them(
    host: Host, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host("a")
    parts = {f"block-{index}": keep(first, {"w": f"{index}"}, "part") for index in range(20)}
    listing = {name: ref.model_dump() for name, ref in parts.items()}
    whole = keep(first, {REFS: json.dumps(listing), "big": "x"})
    second = host("b")
    asked = _asked(monkeypatch)
    assert second.problem(whole) is None
    assert len(asked) <= 2 * 20 + 3
    assert second.children(whole) == parts
    assert not (second.root / "objects").exists()
    asked.clear()
    assert second.problem(whole) is None
    assert asked == []  # asked a moment ago
    monkeypatch.setattr(remote, "TRUST_SECONDS", -1.0)
    third = host("c")
    server.delete(_at(first, parts["block-7"], "w"))
    assert third.problem(whole) == "incomplete: block-7 is damaged: w is missing"
    server.write(_at(first, whole, REFS), b"?" * len(json.dumps(listing)))
    assert host("d").problem(whole) == "damaged: the content of refs.json was changed"


def test_several_who_want_the_same_fetch_it_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = keep(host("a"), {str(number): "x" for number in range(30)})
    stores = [host("b") for _ in range(4)]
    fetched: list[str] = []
    honest = Bucket.download

    def count(self: Bucket, place: str, names: list[str], folder: Path) -> None:
        fetched.append(place)
        honest(self, place, names, folder)

    monkeypatch.setattr(Bucket, "download", count)
    found: list[int] = []

    def fetch(store: RemoteStore) -> None:
        found.append(len(list(store.path(ref).iterdir())))

    threads = [threading.Thread(target=fetch, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [31] * 4
    assert len(fetched) == 1


def test_stages_that_ran_on_one_machine_are_hits_on_another(tmp_path: Path, host: Host) -> None:
    project = Project(tmp_path, host("a"))
    results = project.run()
    assert ran(results) == ["alpha", "quantize", "evaluate"]
    project.store = host("b")
    assert ran(project.run()) == []
    assert not (project.store.root / "objects").exists()
    changed = project.run(tasks=("arc",))
    assert ran(changed) == ["evaluate"]
    assert changed["evaluate"].reason == 'changed: tasks ["piqa"] -> ["arc"]'
    project.store = host("a")
    assert ran(project.run(tasks=("arc",))) == []
    ref = results["quantize"].ref
    assert ref is not None
    assert (host("c").path(ref) / "codes.txt").read_text() == "14"


def test_blocks_are_shared_too(host: Host) -> None:
    def body(out: Path, bench: Workbench, *, plan: list[int]) -> None:
        cache = bench.block_cache(seed=0)
        for index, bits in enumerate(plan):
            if cache.get(index, {"bits": bits}) is None:
                cache.put(index, {"bits": bits}, lambda to, b=bits: _write(to / "block", str(b)))  # type: ignore[misc]
        _write(out / REFS, json.dumps(cache.as_refs()))

    counts = []
    for name, plan in (("a", [4, 4, 4]), ("b", [4, 3, 4]), ("c", [4, 3, 4])):
        result = run_stage(Stage("toy", body, __name__), host(name), {"plan": plan})
        counts.append((result.state, result.units_ran, result.units_cached))
    assert counts == [("ran", 3, 0), ("ran", 2, 1), ("cached", 0, 3)]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_two_machines_that_want_the_same_compute_it_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)
    calls: list[str] = []

    def body(out: Path, bench: Workbench) -> None:
        calls.append("x")
        time.sleep(0.3)
        _write(out / "result", "1")

    results: list[StageResult] = []
    stage = Stage("slow", body, __name__)
    threads = [
        threading.Thread(
            target=lambda store: results.append(run_stage(stage, store, {})), args=(s,)
        )
        for s in (host("a"), host("b"), host("c"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["x"]
    assert sorted(result.state for result in results) == ["cached", "cached", "ran"]


def test_a_store_travels_to_other_processes(host: Host) -> None:
    store = host("a")
    ref = keep(store, {"a": "1"})
    copy = pickle.loads(pickle.dumps(store))
    assert copy.problem(ref) is None


def test_a_forked_child_opens_a_connection_of_its_own(url: str) -> None:
    code = (
        "import os, sys; from alphaquant.store.bucket import Bucket; bucket = Bucket(sys.argv[1]);"
        "bucket.write('x', b'1'); pid = os.fork();"
        "pid or os._exit(0 if bucket.read('x') == b'1' else 1);"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, url]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0


def test_a_full_disk_while_fetching_is_said_plainly(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = keep(host("a"), {"a": "1"})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = host("b")
    driver, _ = store.remote._connection()
    monkeypatch.setattr(driver, "get_file", full)
    with pytest.raises(StoreError, match=r"is full.*ALPHAQUANT_CACHE"):
        store.path(ref)
    assert list((store.root / "tmp").iterdir()) == []


def test_a_bucket_that_may_be_written_passes_the_check(host: Host, tmp_path: Path) -> None:
    check_places(host("a"), tmp_path / "out")


def test_a_bucket_that_does_not_exist_is_the_users_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"s3://nowhere/x.*not exist.*Create the bucket.*--store"):
        check_places(open_store("s3://nowhere/x"), tmp_path / "out")


def test_missing_credentials_are_the_users_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="Check the credentials"):
        open_store(url).reach()


def test_a_server_that_is_away_is_said_early_and_in_the_middle(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = host("a")
    with pytest.raises(UserError, match=r"cannot write s3://.*Could not connect.*--store"):
        store.reach()
    with pytest.raises(StoreError, match="Check the network"):
        store.read_json("keys/toy/k.json")
    with pytest.raises(StoreError, match="Finished work is kept"):
        keep(store, {"a": "1"})
    assert len(list(store.root.glob("objects/toy/*/*"))) == 1


@pytest.mark.parametrize(
    ("where", "driver", "said"),
    [
        ("s3://a/b", "s3fs", r"pip install 'alphaquant\[s3\]'"),
        ("gs://a/b", "gcsfs", r"pip install 'alphaquant\[gs\]'"),
        ("abfs://a/b", "adlfs", "adlfs"),
    ],
)
def test_a_missing_driver_is_named(
    where: str, driver: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, where.partition("://")[0], raising=False)
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(UserError, match=said):
        open_store(where).reach()


def test_an_unknown_kind_of_url_is_the_users_error() -> None:
    with pytest.raises(UserError, match="s3://BUCKET/FOLDER"):
        open_store("dropbucket://a").reach()


def test_any_file_system_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHAQUANT_STORE", f"file://{tmp_path}/shared")
    monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path / "a"))
    project = Project(tmp_path, open_store())
    check_places(project.store, tmp_path / "out")
    assert ran(project.run()) == ["alpha", "quantize", "evaluate"]
    monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path / "b"))
    project.store = open_store()
    assert ran(project.run()) == []
    ref = project.run(tasks=("arc",))["evaluate"].ref
    assert ref is not None
    assert ArtifactStore(tmp_path / "shared").problem(ref) is None


def test_a_store_in_a_folder_does_not_load_drivers() -> None:
    code = (
        "import sys; from flows.preflight import open_store; open_store('x');"
        "sys.exit('fsspec' in sys.modules or 'alphaquant.store.remote' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
