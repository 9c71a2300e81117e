"""Whatever happens to the files of a store: a run gives the right bytes or stops with an error of ours."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alphaquant.errors import AlphaQuantError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.runs import save_run
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage
from alphaquant.upkeep.fsck import fsck
from alphaquant.upkeep.gc import gc
from alphaquant.upkeep.inventory import artifacts
from tests.store.project import Project

CASES = 100
SEEDS = 5


def _blocks(out: Path, bench: Workbench, *, bits: int) -> None:
    """A stage of three blocks."""
    cache = bench.block_cache(seed=0)
    for index in range(3):
        if cache.get(index, {"bits": bits}) is None:

            def write(folder: Path, text: str = f"block {index} at {bits}") -> None:
                (folder / "block").write_text(text)

            cache.put(index, {"bits": bits}, write)
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


@dataclass
class Toy:
    """The toy project and a stage of blocks, on a store that can be put back to how it was."""

    project: Project
    pristine: Path
    states: Counter[str] = field(default_factory=Counter)

    def run(self) -> dict[str, bytes]:
        """Two runs with different bits: every byte that a user would be handed, by name."""
        store = self.project.store
        found: dict[str, bytes] = {}
        for bits in (3, 4):
            results = self.project.run(bits=bits)
            results["blocks"] = run_stage(Stage("blocks", _blocks, __name__), store, {"bits": bits})
            self.states.update(result.state for result in results.values())
            self._note(bits, results)
            for name, result in results.items():
                assert result.ref is not None
                folders = [store.path(result.ref)]
                folders += [store.path(child) for child in store.children(result.ref).values()]
                for number, folder in enumerate(folders):
                    for path in sorted(folder.iterdir()):
                        found[f"{bits}/{name}/{number}/{path.name}"] = path.read_bytes()
        return found

    def _note(self, bits: int, results: dict[str, StageResult]) -> None:
        manifest = {
            "run_id": f"run-{bits}",
            "started": "2025-01-01T00:00:00+00:00",
            "status": "completed",
            "refs": {
                name: result.ref.model_dump() for name, result in results.items() if result.ref
            },
        }
        with contextlib.suppress(AlphaQuantError):
            save_run(self.project.store, manifest)

    def put_back(self, root: Path) -> None:
        """Give the project a fresh copy of the store, whose stat cache knows its files."""
        shutil.copytree(self.pristine, root)
        self.project.store = ArtifactStore(root)
        for stored in artifacts(root):
            assert self.project.store.problem(stored.ref) is None


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a hundred stores are made and removed."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A project that has run."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power fails here, and disks are slow
    made = Toy(Project(folder, ArtifactStore(folder / "pristine")), folder / "pristine")
    made.run()
    made.states.clear()
    locks = folder / "pristine" / "locks"
    (locks / "blocks-0.lock").write_text('{"process": "1"}')
    return made


Harm = Callable[[random.Random, Path, list[Path]], None]


def _truncate(rng: random.Random, path: Path, others: list[Path]) -> None:
    content = path.read_bytes()
    _write(path, content[: rng.randrange(max(1, len(content)))])


def _flip(rng: random.Random, path: Path, others: list[Path]) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(rng.choice((1, 1, 1, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    _write(path, bytes(content))


def _delete(rng: random.Random, path: Path, others: list[Path]) -> None:
    path.unlink()


def _empty(rng: random.Random, path: Path, others: list[Path]) -> None:
    _write(path, b"")


def _grow(rng: random.Random, path: Path, others: list[Path]) -> None:
    _write(path, path.read_bytes() + rng.randbytes(rng.randrange(1, 50)))


def _forge(rng: random.Random, path: Path, others: list[Path]) -> None:
    _write(path, rng.choice(others).read_bytes())


def _swap(rng: random.Random, path: Path, others: list[Path]) -> None:
    other, aside = rng.choice(others), path.with_name("aside")
    path.rename(aside)
    if other != path:
        other.rename(path)
    aside.rename(other)


def _swap_inside_folder(rng: random.Random, path: Path, others: list[Path]) -> None:
    _swap(rng, path, [other for other in others if other.parent.parent == path.parent.parent])


def _folder_instead(rng: random.Random, path: Path, others: list[Path]) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "inside").write_text("")


def _link_instead(rng: random.Random, path: Path, others: list[Path]) -> None:
    target = rng.choice([path, path.with_name("nowhere"), path.parent, *others])
    path.unlink()
    path.symlink_to(target)


def _forbid(rng: random.Random, path: Path, others: list[Path]) -> None:
    path.chmod(0)


def _lose_folder(rng: random.Random, path: Path, others: list[Path]) -> None:
    shutil.rmtree(path.parent)


def _file_instead_of_folder(rng: random.Random, path: Path, others: list[Path]) -> None:
    if path.name == "MANIFEST.json":
        shutil.rmtree(path.parent)
        path.parent.write_text("")


HARMS: tuple[Harm, ...] = (
    _truncate,
    _flip,
    _flip,
    _flip,
    _delete,
    _empty,
    _grow,
    _forge,
    _swap,
    _swap_inside_folder,
    _folder_instead,
    _link_instead,
    _forbid,
    _lose_folder,
    _file_instead_of_folder,
)


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):
        path.chmod(0o644)
    path.write_bytes(content)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _harm(rng: random.Random, root: Path) -> list[str]:
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = _files(root)
        part = rng.choice(("objects", "keys", "runs", "stat", "locks", "objects", "keys"))
        victims = [path for path in files if path.relative_to(root).parts[0] == part] or files
        path, harm = rng.choice(victims), rng.choice(HARMS)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            harm(rng, path, files)
        done.append(f"{harm.__name__} {path.relative_to(root)}")
    return done


@pytest.fixture
def writable_again(folder: Path) -> Iterator[None]:
    """Give permissions back, so that the folder can be removed."""
    yield
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_file():
            path.chmod(0o644)


@pytest.mark.usefixtures("writable_again")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_harm_never_gives_a_wrong_result(toy: Toy, folder: Path, seed: int) -> None:
    toy.put_back(folder / "unharmed")
    right = toy.run()
    assert set(toy.states) == {"cached"}
    stopped = 0
    for case in range(CASES):
        rng = random.Random(f"{seed} {case}")
        root = folder / f"case-{case}"
        toy.put_back(root)
        done = _harm(rng, root)
        try:
            try:
                found = toy.run()
            except AlphaQuantError:
                stopped += 1
                fsck(toy.project.store)
                found = toy.run()
            assert found == right
            if fsck(toy.project.store).findings:
                assert fsck(toy.project.store).findings == []
                gc(toy.project.store)
                assert toy.run() == right
        except BaseException as error:
            error.add_note(f"case {case} of seed {seed}: {'; '.join(done)}")
            raise
        shutil.rmtree(root)
    assert toy.states["ran"] > CASES // 2
    assert stopped < CASES // 5


def test_a_flip_that_hides_behind_an_unchanged_stat_is_seen_by_fsck_alone(
    toy: Toy, folder: Path
) -> None:
    right = toy.run()
    store = toy.project.store
    result = toy.project.run(bits=3)["evaluate"]
    assert result.ref is not None
    victim = store.path(result.ref) / "scores.txt"
    stat = victim.stat()
    _flip(random.Random(0), victim, [])
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert toy.run() != right
    assert fsck(store, fast=True).findings == []
    (finding,) = fsck(store).findings
    assert finding.problems == ["the content of scores.txt was changed"]
    assert toy.run() == right
