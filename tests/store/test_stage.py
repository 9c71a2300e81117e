"""The engine, on a toy project: what runs again after which change, and what it says about it."""

from __future__ import annotations

import json
import mmap
import shutil
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import DataError, StoreError, UserError
from alphaquant.resident import resident
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import load_record
from alphaquant.store.stage import Skipped, Stage, Workbench, run_stage
from tests.store.contents import overwrite
from tests.store.project import Project, ran


@pytest.fixture
def project(tmp_path: Path, store: ArtifactStore) -> Project:
    """A project that has run once."""
    made = Project(tmp_path, store)
    assert ran(made.run()) == ["alpha", "quantize", "evaluate"]
    return made


def _file(store: ArtifactStore, ref: ArtifactRef | None, name: str) -> Path:
    assert ref is not None
    return store.path(ref) / name


def test_a_first_run_says_so(tmp_path: Path, store: ArtifactStore) -> None:
    results = Project(tmp_path, store).run()
    assert {result.reason for result in results.values()} == {"first run"}


def test_a_miss_is_explained_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def why(store: ArtifactStore, stage: str, ingredients: dict[str, Any]) -> str:
        asked.append(stage)
        return "because"

    monkeypatch.setattr("alphaquant.store.stage.why_new", why)
    results = project.run(bits=3)
    assert asked == ran(results) == ["quantize", "evaluate"]
    assert results["quantize"].reason == "because"


def test_a_second_run_runs_nothing(project: Project) -> None:
    results = project.run()
    assert ran(results) == []
    assert {result.state for result in results.values()} == {"cached"}
    assert all(result.reason.startswith("unchanged since") for result in results.values())


def test_other_tasks_run_the_evaluation_alone(project: Project) -> None:
    results = project.run(tasks=("boolq",))
    assert ran(results) == ["evaluate"]
    assert results["evaluate"].reason == 'changed: tasks ["piqa"] -> ["boolq"]'


def test_another_device_runs_nothing(project: Project) -> None:
    assert ran(project.run(device="cuda:1")) == []


def test_a_reworded_comment_or_docstring_runs_nothing(project: Project) -> None:
    project.edit("rounding", "# half the bits", "# one bit in two")
    project.edit("rounding", "How numbers are rounded.", "The rounding rule.")
    assert ran(project.run()) == []


def test_a_helper_rewritten_to_the_same_effect_stops_at_its_stage(project: Project) -> None:
    project.edit("rounding", "value * bits // 2", "(bits * value) // 2")
    results = project.run()
    assert ran(results) == ["quantize"]
    assert results["quantize"].reason == f"code changed: {project.package}.rounding"


def test_a_helper_with_another_effect_runs_what_follows(project: Project) -> None:
    project.edit("rounding", "value * bits // 2", "value * bits // 3")
    assert ran(project.run()) == ["quantize", "evaluate"]


def test_a_helper_three_imports_deep_counts(project: Project) -> None:
    project.edit("steps", "0 * 1", "1 - 1")
    results = project.run()
    assert ran(results) == ["quantize"]
    assert results["quantize"].reason == f"code changed: {project.package}.steps"
    project.edit("steps", "1 - 1", "1")
    assert ran(project.run()) == ["quantize", "evaluate"]


def test_other_bits_run_quantization_and_what_follows(project: Project) -> None:
    results = project.run(bits=3)
    assert ran(results) == ["quantize", "evaluate"]
    assert results["quantize"].reason == "changed: bits 4 -> 3"
    assert results["evaluate"].reason.startswith("changed: quantized ")


def test_going_back_to_earlier_settings_finds_the_earlier_results(project: Project) -> None:
    project.run(bits=3)
    assert ran(project.run(bits=4)) == []


def test_a_deleted_artifact_is_made_again_and_nothing_else(project: Project) -> None:
    before = project.run()["quantize"].ref
    shutil.rmtree(_file(project.store, before, "codes.txt").parent)
    results = project.run()
    assert ran(results) == ["quantize"]
    assert results["quantize"].reason == "artifact missing"
    assert results["quantize"].ref == before


def test_an_artifact_damaged_at_equal_size_is_made_again_and_nothing_else(project: Project) -> None:
    victim = _file(project.store, project.run()["alpha"].ref, "alpha.txt")
    good = victim.read_text()
    overwrite(victim, "x" * len(good))
    results = project.run()
    assert ran(results) == ["alpha"]
    assert results["alpha"].reason == "artifact damaged: the content of alpha.txt was changed"
    assert victim.read_text() == good


def test_other_weights_at_the_same_path_run_everything(project: Project) -> None:
    project.model.path.write_text("other weights")
    results = project.run()
    assert ran(results) == ["alpha", "quantize", "evaluate"]
    assert results["alpha"].reason == "changed: model weights -> other we"


def test_a_forced_stage_runs_and_equal_bytes_stop_the_wave(project: Project) -> None:
    results = project.run(force=("quantize",))
    assert ran(results) == ["quantize"]
    assert results["quantize"].reason == "forced"


def test_forcing_from_a_stage_on_runs_what_follows_although_bytes_are_equal(
    project: Project,
) -> None:
    results = project.run(force=("quantize", "evaluate"))
    assert ran(results) == ["quantize", "evaluate"]
    assert results["evaluate"].reason == "forced"


def test_a_torn_record_costs_one_run_of_its_stage(project: Project) -> None:
    result = project.run()["evaluate"]
    record = project.store.root / "keys" / "evaluate" / f"{result.key}.json"
    record.write_text(record.read_text()[:40])
    assert ran(project.run()) == ["evaluate"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record | {"key": "0" * 40},
        lambda record: record | {"stage": "alpha"},
        lambda record: record | {"ingredients": record["ingredients"] | {"inputs": {}}},
    ],
)
def test_a_record_that_was_not_written_for_its_key_is_no_hit(project: Project, edit: Any) -> None:
    result = project.run()["evaluate"]
    path = project.store.root / "keys" / "evaluate" / f"{result.key}.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    assert ran(project.run()) == ["evaluate"]


def test_a_moved_store_keeps_its_hits(project: Project, tmp_path: Path) -> None:
    project.store.root.rename(tmp_path / "elsewhere")
    project.store = ArtifactStore(tmp_path / "elsewhere")
    assert ran(project.run()) == []


def test_a_copied_store_keeps_its_hits(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.store.root, tmp_path / "copy")
    project.store = ArtifactStore(tmp_path / "copy")
    assert ran(project.run()) == []


def test_the_reason_compares_with_the_most_similar_earlier_run(project: Project) -> None:
    project.run(bits=3, tasks=("boolq",))
    results = project.run(tasks=("piqa", "arc"))
    assert results["evaluate"].reason == 'changed: tasks ["piqa"] -> ["piqa", "arc"]'


def _stage(body: Any) -> Stage:
    return Stage("toy", body, __name__)


def test_an_input_of_unknown_content_is_an_error_not_an_uncached_run(store: ArtifactStore) -> None:
    calls = []
    toy = _stage(lambda out, store, **inputs: calls.append(1))
    with pytest.raises(TypeError, match="input 'folder' of stage toy is a PosixPath"):
        run_stage(toy, store, {"folder": Path("weights")})
    assert not calls


def test_a_stage_that_does_not_apply_is_remembered(store: ArtifactStore) -> None:
    calls = []

    def body(out: Path, bench: Workbench) -> Skipped:
        calls.append(1)
        return Skipped("the model is dense")

    results = [run_stage(_stage(body), store, {}) for _ in range(2)]
    assert [(r.state, r.reason, r.ref) for r in results] == [
        ("skipped", "the model is dense", None)
    ] * 2
    assert len(calls) == 1


@pytest.mark.skipif(resident() is None, reason="the system does not say what is in memory")
def test_a_stage_tells_what_it_had_in_memory_itself(store: ArtifactStore) -> None:
    size = 64 << 20

    def body(out: Path, bench: Workbench, *, held: int) -> None:
        # a mapping of its own: what the allocator has left over from others would add nothing
        with mmap.mmap(-1, held) as memory:
            for page in range(0, held, mmap.PAGESIZE):
                memory[page] = 1
        (out / "a").write_text(str(held))

    stage = _stage(body)
    much, little = (run_stage(stage, store, {"held": held}).place for held in (size, 1))
    assert much is not None
    assert much.memory is not None
    assert little is not None
    assert little.memory is not None
    assert much.memory - little.memory > size * 15 // 16
    assert much.device_memory is None


def test_a_failing_body_leaves_nothing_behind(store: ArtifactStore) -> None:
    def body(out: Path, bench: Workbench) -> None:
        (out / "half").write_text("written")
        raise DataError("the text is too short")

    with pytest.raises(DataError):
        run_stage(_stage(body), store, {})
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert list((store.root / "tmp").iterdir()) == []


def test_a_body_that_writes_nothing_is_an_error(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="wrote nothing"):
        run_stage(_stage(lambda out, bench: None), store, {})


def test_a_store_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file" / "store")
    with pytest.raises(UserError, match="--store"):
        run_stage(_stage(lambda out, bench: None), store, {})


def test_the_record_tells_what_the_result_was_made_with(project: Project) -> None:
    result = project.run(bits=3)["quantize"]
    record = load_record(project.store, "quantize", result.key)
    assert record is not None
    assert record.ingredients["inputs"]["bits"] == 3
    assert "execution" not in record.ingredients["inputs"]
    assert record.environment["python"]
    assert record.seconds > 0


def test_blocks_before_the_first_change_are_reused(store: ArtifactStore) -> None:
    def body(out: Path, bench: Workbench, *, plan: list[int]) -> None:
        cache = bench.block_cache(seed=0)
        for index, bits in enumerate(plan):
            if cache.get(index, {"bits": bits}) is None:
                cache.put(index, {"bits": bits}, lambda to, b=bits: _write(to / "block", str(b)))  # type: ignore[misc]
        _write(out / "refs.json", json.dumps(cache.as_refs()))

    counts = []
    for plan in ([4, 4, 4], [4, 3, 4], [4, 3, 4]):
        result = run_stage(_stage(body), store, {"plan": plan})
        counts.append((result.units_ran, result.units_cached))
    assert counts == [(3, 0), (2, 1), (0, 3)]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_a_damaged_block_makes_its_stage_run_and_only_that_block_is_computed(
    store: ArtifactStore,
) -> None:
    def body(out: Path, bench: Workbench) -> None:
        cache = bench.block_cache()
        for index in range(3):
            if cache.get(index, {}) is None:
                cache.put(index, {}, lambda to, i=index: _write(to / "block", f"block {i}"))  # type: ignore[misc]
        _write(out / "refs.json", json.dumps(cache.as_refs()))

    first = run_stage(_stage(body), store, {})
    assert first.ref is not None
    block = store.children(first.ref)["block-0001"]
    (store.path(block) / "block").unlink()
    second = run_stage(_stage(body), store, {})
    assert second.reason == "artifact incomplete: block-0001 is damaged: block is missing"
    assert (second.units_ran, second.units_cached) == (1, 2)
    assert second.ref == first.ref
