"""Walks over the pipeline: what follows a stage, and what a run can do without."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import RunConfig
from alphaquant.config.file import parse_config
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.planning import NOT_NEEDED
from alphaquant.store.stage import Stage, StageResult, run_stage
from flows.dag import STAGE_NAMES
from flows.planned import UNPUBLISHED, from_here_on, planned_stages
from flows.preflight import prepare
from flows.runner import Request, run
from flows.spared import Spared
from tests.flows.fakes import BODIES, make_model_folder, use_fake_stages

WHOLE = parse_config(
    {
        "router": {"method": "kl"},
        "comparison": {"random": 1},
        "quantization": {"tune": "model"},
    }
)


_FROM_PLAN = STAGE_NAMES[STAGE_NAMES.index("allocate") :]


@pytest.mark.parametrize(
    ("first", "following"),
    [
        (["analyze"], ["analyze"]),
        (["export"], ["export", "evaluate", "analyze"]),
        (["compare"], ["compare", "analyze"]),
        (["router"], ["router", "export", "evaluate", "analyze"]),
        (["tune"], ["tune", "router", "export", "evaluate", "analyze"]),
        (["generate"], ["generate", "balance", "sensitivity", *_FROM_PLAN]),
        (["balance"], ["balance", "sensitivity", *_FROM_PLAN]),
        (["alpha"], ["alpha", *_FROM_PLAN]),
        (["rotate"], ["rotate", "sensitivity", *_FROM_PLAN]),
        (["compare", "export"], ["export", "evaluate", "compare", "analyze"]),
        ([], []),
    ],
)
def test_from_here_on_means_every_stage_that_is_given_the_result(
    first: list[str], following: list[str]
) -> None:
    assert list(from_here_on(WHOLE, first)) == following


def test_a_skipped_stage_stands_in_line_too() -> None:
    assert "export" in from_here_on(RunConfig(), ["router"])
    assert {"balance", "sensitivity"} <= {*from_here_on(RunConfig(), ["calibration"])}
    assert {"tune", "export"} <= {*from_here_on(RunConfig(), ["quantize"])}


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore) -> Request:
    """A run of the fake pipeline that was done once."""
    monkeypatch.chdir(tmp_path)
    use_fake_stages(monkeypatch)
    model = make_model_folder(tmp_path / "model")
    settings = {
        "model": {"path": str(model)},
        "calibration": {"generated": 0.5, "balance": 2},
        "rotation": {"kind": "hadamard"},
        "quantization": {"tune": "model"},
    }
    request = prepare(parse_config(settings), store)
    run(request)
    return request


def _remove(store: ArtifactStore, kind: str) -> None:
    shutil.rmtree(store.root / "objects" / kind)


def _states(request: Request) -> dict[str, str]:
    return {stage.name: stage.state for stage in planned_stages(request)}


def test_removed_blocks_are_not_needed_to_show_what_is_cached(request_: Request) -> None:
    _remove(request_.store, "quantize-block")
    planned = {stage.name: stage for stage in planned_stages(request_)}
    assert {stage.state for stage in planned.values()} == {"cached", "skipped"}
    assert planned["quantize"].reason == NOT_NEEDED


def test_removed_blocks_are_needed_by_an_export_that_runs(request_: Request) -> None:
    _remove(request_.store, "quantize-block")
    _remove(request_.store, "export")
    stages = ("quantize", "tune", "export", "evaluate")
    states = _states(request_)
    assert [states[name] for name in stages] == ["cached", "cached", "run", "cached"]
    _remove(request_.store, "tune-block")
    states = _states(request_)
    assert [states[name] for name in stages] == ["run", "run", "run", "cached"]


def test_damaged_blocks_are_made_again(request_: Request) -> None:
    next((request_.store.root / "objects" / "quantize-block").rglob("block")).unlink()
    assert _states(request_)["quantize"] == "run"


def test_a_removed_table_is_made_again_because_it_is_handed_over(request_: Request) -> None:
    _remove(request_.store, "alpha")
    states = _states(request_)
    assert [name for name, state in states.items() if state == "run"] == ["alpha"]


def test_removed_tokens_and_rotated_models_are_not_needed_until_a_stage_that_reads_them_runs(
    request_: Request,
) -> None:
    _remove(request_.store, "calibration")
    assert _states(request_)["calibration"] == "cached"
    _remove(request_.store, "generate")
    _remove(request_.store, "balance")
    _remove(request_.store, "rotate")
    assert _states(request_)["rotate"] == "cached"
    _remove(request_.store, "baseline")
    _remove(request_.store, "sensitivity")
    states = _states(request_)
    assert {name for name in UNPUBLISHED if states[name] == "cached"} == {"baseline"}
    _remove(request_.store, "evaluate")
    states = _states(request_)
    assert {states[name] for name in UNPUBLISHED} == {"run"}


def test_only_stages_of_which_nothing_is_published_are_called_so(request_: Request) -> None:
    objects = request_.store.root / "objects"
    for name in BODIES:
        files = [
            p for p in (objects / name).rglob("*") if p.is_file() and p.name != "MANIFEST.json"
        ]
        tensors_only = bool(files) and all(path.suffix == ".safetensors" for path in files)
        assert tensors_only == (name in UNPUBLISHED)


class Calls:
    """Calls stages as a run does, with spared ones left out."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._spared = Spared(request)
        self.results: dict[str, StageResult] = {}
        self.order: list[str] = []
        request.stages(request.config, request.model, self)

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | None:
        force = stage.name in self._request.force
        if spared := self._spared.take(stage, inputs):
            self.results[stage.name] = spared
            return spared.ref
        for earlier, given in self._spared.needed_for(stage, inputs, force=force):
            self._call(earlier, given)
        return self._call(stage, inputs).ref

    def _call(self, stage: Stage, inputs: Mapping[str, Any]) -> StageResult:
        self.results[stage.name] = run_stage(stage, self._request.store, inputs)
        if self.results[stage.name].state == "ran":
            self.order.append(stage.name)
        return self.results[stage.name]

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        """Nothing to note."""


def test_a_run_leaves_out_what_it_does_not_need(request_: Request) -> None:
    _remove(request_.store, "quantize-block")
    _remove(request_.store, "calibration")
    calls = Calls(request_)
    assert calls.order == []
    quantize = calls.results["quantize"]
    assert (quantize.state, quantize.reason, quantize.units_cached) == ("cached", NOT_NEEDED, 2)
    assert not (request_.store.root / "objects" / "quantize-block").exists()


def test_what_was_left_out_is_computed_when_a_stage_comes_out_otherwise(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpha was planned to come out as before; when it does not, the tokens are read after all."""
    for kind in ("quantize-block", "calibration", "generate", "balance", "alpha"):
        _remove(request_.store, kind)

    def other_alpha(out: Path, store: Any, **inputs: Any) -> None:
        BODIES["alpha"](out, store, **inputs)
        (out / "more").write_text("")

    def other_plan(out: Path, store: Any, **inputs: Any) -> None:
        BODIES["allocate"](out, store, **inputs)
        (out / "more").write_text("")

    def reading(out: Path, store: Any, *, tokens: Any, **inputs: Any) -> None:
        assert (store.path(tokens) / "tokens.safetensors").is_file()
        BODIES["quantize"](out, store, tokens=tokens, **inputs)

    use_fake_stages(monkeypatch, alpha=other_alpha, allocate=other_plan, quantize=reading)
    calls = Calls(request_)
    tokens = ["calibration", "generate", "balance"]
    assert calls.order[:6] == ["alpha", "allocate", *tokens, "quantize"]
    assert calls.results["calibration"].reason == "artifact missing"
