"""Leases in a bucket: one holder among many machines, and nobody waits long for the dead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from alphaquant.progress import reporting_to
from alphaquant.store import lease
from alphaquant.store.bucket import Bucket
from alphaquant.store.lease import leased
from tests.notes import Notes
from tests.store.s3 import S3Server, s3_server

HOLDER = """
import sys, time
from alphaquant.store import lease
from alphaquant.store.bucket import Bucket
lease.BEAT_SECONDS = 0.1
with lease.leased(Bucket(sys.argv[1]), "key", "alpha", "place of the holder"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        running.bucket("leases")
        yield running


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Bucket(f"s3://leases/{uuid.uuid4().hex}")


@pytest.fixture(params=["s3", "folder", "folder without exclusive creation"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """A place for leases, of every sort."""
    if request.param == "s3":
        found: Bucket = request.getfixturevalue("s3")
        return found
    if "without" in request.param:
        monkeypatch.setattr(Bucket, "exclusive", lambda self: False)
    return Bucket(f"file://{tmp_path}/bucket")


def test_exclusive_creation_is_found_where_it_is(s3: Bucket, tmp_path: Path) -> None:
    assert s3.exclusive()
    assert Bucket(f"file://{tmp_path}/bucket").exclusive()


def test_a_server_that_overwrites_silently_is_found_out(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: Bucket, name: str, content: bytes) -> bool:
        self.write(name, content)
        return True

    monkeypatch.setattr(Bucket, "create", overwrite)
    assert not s3.exclusive()


def test_of_several_who_create_the_same_file_one_wins(s3: Bucket) -> None:
    for attempt in range(15):
        start = threading.Barrier(4)
        won: list[int] = []

        def create(number: int, attempt: int = attempt, start: threading.Barrier = start) -> None:
            start.wait()
            if s3.create(f"race/{attempt}", str(number).encode()):
                won.append(number)  # noqa: B023 - joined before the next round

        _together([threading.Thread(target=create, args=(number,)) for number in range(4)])
        assert len(won) == 1
        assert s3.read(f"race/{attempt}") == str(won[0]).encode()


def test_holders_exclude_each_other(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1000.0)  # nobody dies here
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most, turns
        own = Bucket(bucket.url)
        for _ in range(3):
            with leased(own, "key", "alpha", f"place {number}"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.02)
                with guard:
                    inside -= 1
                    turns += 1

    _together([threading.Thread(target=work, args=(number,)) for number in range(4)])
    assert (most, turns) == (1, 12)
    assert bucket.files("leases/key") == {}


def test_a_killed_holder_blocks_until_its_claim_expires_and_the_waiter_was_told(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2.0)  # many beats even on a busy machine
    with _holder(s3) as holder:
        notes = Notes()

        def kill() -> None:
            assert notes.first.wait(60)
            time.sleep(2.5)  # longer than the expiry: a living holder is not robbed
            assert not taken.is_set()
            os.kill(holder.pid, signal.SIGKILL)
            killed.append(time.monotonic())

        taken, killed = threading.Event(), list[float]()
        killer = threading.Thread(target=kill)
        killer.start()
        with reporting_to(notes), leased(s3, "key", "alpha", "my place"):
            taken.set()
            waited = time.monotonic() - killed[0]
        killer.join()
        assert 0.5 < waited < 60
    assert len(notes.said) == 1
    assert notes.said[0].startswith(f"alpha: waiting for process {holder.pid} on ")
    assert notes.said[0].endswith("which is computing the same")


def test_a_killed_holder_of_the_same_place_blocks_nobody(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1000.0)
    with _holder(s3) as holder:
        holder.kill()
        holder.wait(60)
        with leased(s3, "key", "alpha", "place of the holder"):
            assert len(s3.files("leases/key")) == 1


def test_a_holder_that_was_suspended_notices_that_it_was_replaced(s3: Bucket) -> None:
    notes = Notes()
    with reporting_to(notes), leased(s3, "key", "alpha", "laptop") as mine:
        mine._done.set()  # no more heartbeats, as in a suspended process
        mine._heart.join()
        with leased(s3, "key", "alpha", "other"):
            mine._done.clear()
            mine._beat()
            assert mine.lost.is_set()
            assert "another machine took over" in notes.said[-1]
            assert len(s3.files("leases/key")) == 1
        assert s3.files("leases/key") == {}


def test_a_claimant_with_an_outdated_listing_withdraws(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(s3, "key", "alpha", "holder") as held:
        late = lease.Lease(s3, "key", "alpha", "late")
        assert not late._take({f"{5:08d}.json": b"{}"})
        assert list(s3.files("leases/key")) == [held._claim]


@pytest.mark.parametrize("torn", [b'{"holder": ', b""])
def test_a_torn_claim_counts_as_living_until_it_expires(s3: Bucket, torn: bytes) -> None:
    s3.write(f"leases/key/{1:08d}.json", torn)
    notes = Notes()
    started = time.monotonic()
    with reporting_to(notes), leased(s3, "key", "alpha", "my place"):
        assert time.monotonic() - started >= 1.0
    assert notes.said == ["alpha: waiting for another process, which is computing the same"]


def _together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _holder(bucket: Bucket) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lease `key`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, bucket.url], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()
