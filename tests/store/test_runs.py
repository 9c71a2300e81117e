"""Run manifests: found by id, by its beginning, or as the last."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.runs import load_run, new_run_id, run_ids, save_run


@pytest.fixture
def filled(store: ArtifactStore) -> ArtifactStore:
    """A store with two runs."""
    for run_id in ("20250101-000000-aaaaaa", "20260101-000000-bbbbbb"):
        save_run(store, {"run_id": run_id})
    return store


def test_ids_differ_and_sort_by_time() -> None:
    first, second = new_run_id(), new_run_id()
    assert first != second
    assert first[:15] <= second[:15]


def test_runs_are_listed_newest_first(filled: ArtifactStore) -> None:
    assert run_ids(filled) == ["20260101-000000-bbbbbb", "20250101-000000-aaaaaa"]


@pytest.mark.parametrize("name", ["last", "2026", "20260101-000000-bbbbbb"])
def test_a_run_is_found_by_any_unique_name(filled: ArtifactStore, name: str) -> None:
    assert load_run(filled, name)["run_id"] == "20260101-000000-bbbbbb"


def test_the_run_before_the_last_has_a_name(filled: ArtifactStore) -> None:
    assert load_run(filled, "last~0")["run_id"] == "20260101-000000-bbbbbb"
    assert load_run(filled, "last~1")["run_id"] == "20250101-000000-aaaaaa"
    with pytest.raises(UserError, match="'last~2' names no run"):
        load_run(filled, "last~2")


@pytest.mark.parametrize(("name", "said"), [("1999", "names no run"), ("20", "names 2 runs")])
def test_an_unclear_name_is_the_users_error(filled: ArtifactStore, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_run(filled, name)


def test_an_empty_store_says_that_it_is_empty(store: ArtifactStore) -> None:
    with pytest.raises(UserError, match="no runs yet"):
        load_run(store, "last")


def test_a_run_whose_process_is_gone_was_killed(store: ArtifactStore) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    at_work = {"status": "running", "host": socket.gethostname()}
    save_run(store, {"run_id": "a", **at_work, "process": ended.pid})
    save_run(store, {"run_id": "b", **at_work, "process": os.getpid()})
    save_run(store, {"run_id": "c", **at_work, "process": ended.pid, "host": "elsewhere"})
    statuses = [load_run(store, name)["status"] for name in "abc"]
    assert statuses == ["killed", "running", "running"]
