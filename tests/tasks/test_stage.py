"""The decorator that makes stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Stage, run_stage
from tasks.stage import stage


@stage("double")
def double(out: Path, store: Any, *, number: int, execution: int) -> None:
    """Write twice the number."""
    (out / "number").write_text(str(2 * number))


def test_a_decorated_function_is_a_stage_of_its_module() -> None:
    assert isinstance(double, Stage)
    assert (double.name, double.module, double.unkeyed) == ("double", __name__, ("execution",))


def test_it_runs_and_its_execution_is_in_no_key(store: ArtifactStore) -> None:
    first = run_stage(double, store, {"number": 2, "execution": 1})
    second = run_stage(double, store, {"number": 2, "execution": 8})
    assert (first.state, second.state) == ("ran", "cached")
    assert second.ref is not None
    assert (store.path(second.ref) / "number").read_text() == "4"


def test_other_inputs_may_be_left_out_of_the_key(store: ArtifactStore) -> None:
    @stage("toy", unkeyed=("colour",))
    def toy(out: Path, store: Any, *, colour: str) -> None:
        (out / "file").write_text("x")

    states = [run_stage(toy, store, {"colour": colour}).state for colour in ("red", "blue")]
    assert states == ["ran", "cached"]
