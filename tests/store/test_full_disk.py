"""A store whose disk fills up: said plainly, nothing harmed, and the same command goes on after space is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphaquant.errors import StoreError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage
from alphaquant.upkeep.fsck import fsck
from alphaquant.upkeep.gc import gc
from alphaquant.upkeep.marking import Keep
from tests.small_disk import fill, small_disk

BLOCK = 100 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Half a MiB."""
    with small_disk(tmp_path / "disk", 512) as folder:
        yield folder


def _blocks(out: Path, bench: Workbench, *, count: int) -> None:
    cache = bench.block_cache()
    for index in range(count):
        if cache.get(index, {}) is None:

            def write(folder: Path, value: int = index) -> None:
                save_file({"w": np.full(BLOCK, value, np.uint8)}, folder / "w.safetensors")

            cache.put(index, {}, write)
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


def _run(disk: Path, count: int = 4) -> StageResult:
    return run_stage(Stage("blocks", _blocks, __name__), ArtifactStore(disk), {"count": count})


def test_a_full_disk_is_named_the_store_stays_sound_and_the_same_run_goes_on(disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(200 * 1024))
    with pytest.raises(
        StoreError, match=rf"the disk of {disk} is full .*Free some space.*are kept"
    ):
        _run(disk)
    assert list((disk / "tmp").iterdir()) == []
    assert fsck(ArtifactStore(disk)).findings == []
    ballast.unlink()
    again = _run(disk)
    assert (again.units_ran, again.units_cached) == (2, 2)
    assert fsck(ArtifactStore(disk)).as_json()["sound"]


def test_a_result_that_needs_no_space_is_still_found(disk: Path) -> None:
    _run(disk, 2)
    fill(disk)
    assert _run(disk, 2).state == "cached"


def test_a_disk_that_is_full_from_the_start_is_said_too(disk: Path) -> None:
    ballast = fill(disk)
    with pytest.raises(StoreError, match="is full"):
        _run(disk, 1)
    ballast.unlink()
    assert _run(disk, 1).state == "ran"


def test_gc_makes_space_on_a_full_disk(disk: Path) -> None:
    _run(disk, 3)
    fill(disk)
    report = gc(ArtifactStore(disk), Keep(grace_hours=0), delete=True)
    assert report.removed == 4
    (disk / "ballast").unlink()
    assert _run(disk, 3).state == "ran"


def test_fsck_checks_a_full_disk(disk: Path) -> None:
    result = _run(disk, 1)
    assert result.ref is not None
    (ArtifactStore(disk).place(result.ref) / "refs.json").unlink()
    fill(disk)
    (finding,) = fsck(ArtifactStore(disk)).findings
    assert finding.problems == ["refs.json is missing"]
