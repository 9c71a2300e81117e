"""Accept: results of older code are kept for today's, when nothing but the code differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import load_record
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage
from alphaquant.upkeep.accept import Acceptance, find_acceptance, save_acceptance
from tests.store.project import Project, ran


@pytest.fixture
def project(tmp_path: Path, store: ArtifactStore) -> Project:
    """A project that has run once."""
    made = Project(tmp_path, store)
    made.run()
    return made


def test_an_accepted_result_is_a_hit_that_says_so(project: Project) -> None:
    before = project.run()["quantize"]
    project.edit("steps", "0 * 1", "1 * 0")
    accepted = project.accept("quantize")["quantize"]
    assert (accepted.verdict, accepted.out) == ("accepted", before.ref)
    assert accepted.modules == (f"{project.package}.steps",)
    results = project.run()
    assert ran(results) == []
    reason = results["quantize"].reason
    assert reason.startswith("accepted on ")
    assert reason.endswith(f"although code changed: {project.package}.steps")
    record = load_record(project.store, "quantize", results["quantize"].key)
    assert record is not None
    assert (record.accepted_from, record.seconds > 0) == (before.key, True)


def test_going_back_to_the_old_code_finds_the_old_result(project: Project) -> None:
    project.edit("steps", "0 * 1", "1 * 0")
    project.accept("quantize")
    project.edit("steps", "1 * 0", "0 * 1")
    results = project.run()
    assert results["quantize"].reason.startswith("unchanged since")


def test_a_result_accepted_twice_is_told_against_the_code_that_computed_it(
    project: Project,
) -> None:
    first = project.run()["quantize"]
    project.edit("steps", "0 * 1", "1 * 0")
    project.accept("quantize")
    project.edit("rounding", "value * bits // 2", "(value * bits) // (2)")  # the same tree
    project.edit("rounding", "def rounded(value, bits)", "def rounded(value, bits, /)")
    accepted = project.accept("quantize")["quantize"]
    assert accepted.modules == (f"{project.package}.rounding", f"{project.package}.steps")
    assert accepted.records[-1].accepted_from == first.key


def test_a_later_edit_is_not_covered_by_an_earlier_acceptance(project: Project) -> None:
    project.edit("steps", "0 * 1", "1 * 0")
    project.accept("quantize")
    project.edit("steps", "1 * 0", "2 * 0")
    assert ran(project.run()) == ["quantize"]


def test_what_is_cached_needs_no_acceptance(project: Project) -> None:
    accepted = project.accept("quantize")["quantize"]
    assert (accepted.verdict, accepted.records) == ("cached", ())


def test_another_input_is_refused_and_named(project: Project) -> None:
    project.edit("steps", "0 * 1", "1 * 0")
    refused = project.accept("quantize", bits=3)["quantize"]
    assert refused.verdict == "refused"
    assert "changed: bits 4 -> 3" in refused.reason
    assert refused.records == ()
    assert ran(project.run(bits=3)) == ["quantize", "evaluate"]


def test_the_newest_result_with_these_inputs_is_taken(project: Project) -> None:
    project.edit("steps", "0 * 1", "5")
    five = project.run()["quantize"]
    project.run(bits=3)
    project.edit("steps", "5", "2 + 3")
    assert project.accept("quantize")["quantize"].out == five.ref


def test_a_stage_whose_input_will_be_computed_cannot_be_accepted(project: Project) -> None:
    project.edit("rounding", "def rounded(value, bits)", "def rounded(value, bits, /)")
    project.edit("evaluate", "def body(out, store, *,", "def body(out, store, /, *,")
    refused = project.accept("evaluate")["evaluate"]
    assert refused.verdict == "refused"
    assert "quantize" in refused.reason
    both = project.accept("quantize", "evaluate")
    assert {acceptance.verdict for acceptance in both.values()} == {"accepted"}
    assert ran(project.run()) == []


def test_a_damaged_artifact_is_not_accepted(project: Project) -> None:
    ref = project.run()["quantize"].ref
    assert ref is not None
    shutil.rmtree(project.store.path(ref))
    project.edit("steps", "0 * 1", "1 * 0")
    found = project.accept("quantize")["quantize"]
    assert found.verdict == "nothing"
    assert found.reason.endswith("is missing")
    assert ran(project.run()) == ["quantize"]


def test_a_stage_that_never_ran_has_nothing_to_accept(tmp_path: Path, store: ArtifactStore) -> None:
    found = Project(tmp_path, store).accept("alpha")["alpha"]
    assert (found.verdict, found.reason) == ("nothing", "it never ran")
    assert not store.root.exists()


class Blocks:
    """A stage of three blocks, whose code a test can change and which can die behind a block."""

    def __init__(self, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self._monkeypatch = monkeypatch
        self.stage = Stage("toy", self._body, __name__)
        self.code("1")

    def code(self, version: str) -> None:
        """Let the code be another."""
        self._monkeypatch.setattr(Stage, "code", lambda stage: {"module": version})

    def run(self, plan: list[int], *, seed: int = 0, until: int = 9) -> StageResult:
        """Quantize by a plan; the process dies at block `until`."""
        return run_stage(self.stage, self.store, {"plan": plan, "seed": seed, "execution": until})

    def accept(self, plan: list[int], *, seed: int = 0) -> Acceptance:
        """Accept what there is for a plan."""
        found = find_acceptance(self.stage, self.store, {"plan": plan, "seed": seed})
        save_acceptance(self.store, found)
        return found

    @staticmethod
    def _body(out: Path, bench: Workbench, *, plan: list[int], seed: int, execution: int) -> None:
        cache = bench.block_cache(seed=seed)
        for index, bits in enumerate(plan):
            if index == execution:
                raise KeyboardInterrupt

            def write(folder: Path, text: str = f"{index} at {bits}") -> None:
                (folder / "block").write_text(text)

            if cache.get(index, {"bits": bits}) is None:
                cache.put(index, {"bits": bits}, write)
        (out / "done").write_text(str(plan))


@pytest.fixture
def blocks(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> Blocks:
    return Blocks(store, monkeypatch)


def test_accepted_blocks_serve_a_plan_that_differs_from_a_block_on(blocks: Blocks) -> None:
    blocks.run([4, 4, 4])
    blocks.code("2")
    accepted = blocks.accept([4, 4, 4])
    assert (accepted.verdict, accepted.blocks) == ("accepted", 3)
    other = blocks.run([4, 4, 3])
    assert (other.units_ran, other.units_cached) == (1, 2)
    assert blocks.run([4, 4, 4]).state == "cached"


def test_without_acceptance_other_code_reuses_no_block(blocks: Blocks) -> None:
    blocks.run([4, 4, 4])
    blocks.code("2")
    assert blocks.run([4, 4, 3]).units_ran == 3


def test_blocks_of_an_interrupted_stage_are_accepted(blocks: Blocks) -> None:
    with pytest.raises(KeyboardInterrupt):
        blocks.run([4, 4, 4], until=2)
    blocks.code("2")
    accepted = blocks.accept([4, 4, 4])
    assert (accepted.verdict, accepted.blocks) == ("accepted", 2)
    result = blocks.run([4, 4, 4])
    assert (result.units_ran, result.units_cached) == (1, 2)


def test_blocks_made_with_other_settings_are_not_accepted(blocks: Blocks) -> None:
    blocks.run([4, 4, 4], seed=1)
    blocks.code("2")
    assert blocks.accept([4, 4, 4]).verdict == "refused"
    assert blocks.run([4, 4, 4]).units_ran == 3


def test_only_blocks_of_one_version_of_the_code_are_accepted(blocks: Blocks) -> None:
    blocks.run([2, 2, 2])
    blocks.code("2")
    blocks.run([4, 4, 4])
    blocks.code("3")
    assert blocks.accept([4, 4, 4]).blocks == 3
    assert blocks.run([2, 2, 2]).units_ran == 3


def test_a_result_that_todays_code_computed_is_not_replaced_by_an_older_one(
    project: Project,
) -> None:
    project.edit("steps", "0 * 1", "7")  # this one changes the result
    newer = project.run()["quantize"]
    assert newer.ref is not None
    shutil.rmtree(project.store.place(newer.ref))
    accepted = project.accept("quantize")["quantize"]
    assert (accepted.verdict, accepted.records) == ("nothing", ())
    assert "this very code has computed it already" in accepted.reason
    assert project.run()["quantize"].ref == newer.ref
