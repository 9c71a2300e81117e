"""Artifacts: written whole, named by content, checked when read."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphaquant.errors import StoreError, UserError
from alphaquant.store import files
from alphaquant.store.artifacts import MANIFEST, ArtifactRef, ArtifactStore
from tests.store.contents import keep, overwrite


def _write_half(folder: Path, error: BaseException) -> None:
    (folder / "a").write_text("half")
    raise error


def test_nothing_is_created_before_the_first_draft(store: ArtifactStore) -> None:
    assert store.problem(ArtifactRef(kind="toy", digest="0" * 64, size=1)) == "missing"
    assert not store.root.exists()


def test_an_artifact_can_be_read_back(store: ArtifactStore) -> None:
    ref = keep(store, {"a.txt": "one", "deep/b.txt": "two"})
    store.verify(ref)
    assert (store.path(ref) / "deep" / "b.txt").read_text() == "two"
    assert ref.size == 6


def test_equal_content_has_one_digest_whatever_the_order_and_the_store(tmp_path: Path) -> None:
    first = keep(ArtifactStore(tmp_path / "1"), {"a": "1", "b": "2"})
    second = keep(ArtifactStore(tmp_path / "2"), {"b": "2", "a": "1"})
    assert first == second


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=5), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=5), min_size=1),
)
def test_digests_are_equal_exactly_when_contents_are(
    tmp_path: Path, one: dict[str, str], other: dict[str, str]
) -> None:
    store = ArtifactStore(tmp_path / "store")
    assert (keep(store, one) == keep(store, other)) == (one == other)


def test_the_same_artifact_may_be_written_twice(store: ArtifactStore) -> None:
    first = keep(store, {"a": "1"})
    assert keep(store, {"a": "1"}) == first
    assert list((store.root / "tmp").iterdir()) == []


def test_a_damaged_object_is_replaced_by_an_equal_draft(store: ArtifactStore) -> None:
    ref = keep(store, {"a": "1", "b": "2"})
    overwrite(store.path(ref) / "a", "x")
    (store.path(ref) / "b").unlink()
    assert keep(store, {"a": "1", "b": "2"}) == ref
    store.verify(ref)
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: overwrite(folder / "a", "longer"), "a has 6 bytes instead of 1"),
        (lambda folder: overwrite(folder / "a", "x"), "the content of a was changed"),
        (lambda folder: (folder / "a").unlink(), "a is missing"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "MANIFEST.json was changed"),
        (lambda folder: (folder / MANIFEST).unlink(), "MANIFEST.json cannot be read"),
    ],
)
def test_every_kind_of_damage_is_seen_and_named(
    store: ArtifactStore, harm: object, said: str
) -> None:
    ref = keep(store, {"a": "1"})
    harm(store.path(ref))  # type: ignore[operator]
    with pytest.raises(StoreError, match=said):
        store.verify(ref)


def test_contents_are_hashed_again_only_when_a_file_changed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    honest = files.sha256_of
    monkeypatch.setattr(
        "alphaquant.store.artifacts.sha256_of", lambda path: hashed.append(path) or honest(path)
    )
    ref = keep(store, {"a": "1", "b": "2"})
    hashed.clear()
    store.verify(ref)
    assert hashed == []
    os.utime(store.path(ref) / "a")
    store.verify(ref)
    assert [path.name for path in hashed] == ["a"]
    store.verify(ref)
    assert len(hashed) == 1
    store.verify(ref, full=True)
    assert len(hashed) == 3


def test_a_change_that_hides_behind_an_unchanged_stat_is_found_by_a_full_check(
    store: ArtifactStore,
) -> None:
    ref = keep(store, {"a": "1"})
    path = store.path(ref) / "a"
    before = path.stat()
    overwrite(path, "x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.problem(ref) is None
    assert store.problem(ref, full=True) == "damaged: the content of a was changed"


def test_a_damaged_part_makes_the_whole_incomplete(store: ArtifactStore) -> None:
    part = keep(store, {"a": "1"}, kind="part")
    whole = keep(store, {"refs.json": '{"first": %s}' % part.model_dump_json()})  # noqa: UP031
    store.verify(whole)
    (store.path(part) / "a").unlink()
    assert store.problem(whole) == "incomplete: first is damaged: a is missing"


def test_files_of_an_artifact_are_read_only(store: ArtifactStore) -> None:
    ref = keep(store, {"a": "1"})
    assert (store.path(ref) / "a").stat().st_mode & 0o222 == 0


def test_an_exception_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.draft("toy") as draft:
        _write_half(draft.path, KeyboardInterrupt())
    assert list((store.root / "tmp").iterdir()) == []
    assert not (store.root / "objects").exists()


def test_a_link_in_a_draft_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="plain files only"), store.draft("toy") as draft:
        (draft.path / "link").symlink_to("/etc/hostname")


def test_a_full_disk_is_said_plainly_and_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match=r"is full.*--store"), store.draft("toy") as draft:
        _write_half(draft.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list((store.root / "tmp").iterdir()) == []


def test_an_os_error_of_the_body_itself_passes_through(store: ArtifactStore) -> None:
    with pytest.raises(PermissionError), store.draft("toy"):
        raise PermissionError(errno.EACCES, "the model's file")


def test_a_store_without_write_permission_is_the_users_error(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*ALPHAQUANT_STORE"), store.draft("toy"):
        pass


def test_drafts_of_dead_processes_are_swept_and_those_of_living_ones_kept(
    store: ArtifactStore,
) -> None:
    with store.draft("toy") as living:
        (living.path / "a").write_text("1")
        dead = store.root / "tmp" / "dead"
        dead.mkdir()
        long_ago = time.time() - 3600
        for folder in (dead, living.path):
            os.utime(folder, (long_ago, long_ago))
        keep(ArtifactStore(store.root), {"b": "2"})
        assert not dead.exists()
        assert living.path.exists()
