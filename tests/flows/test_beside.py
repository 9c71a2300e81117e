"""FARMS is computed beside a GPU, by another process, and never where it would take cores from the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import flows.beside
from alphaquant.config.file import parse_config
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import lookup, run_stage
from flows.beside import alpha_beside
from flows.dag import alpha, quantize_only
from flows.preflight import prepare
from flows.runner import Request, run
from tests.flows.fakes import make_model_folder, use_fake_stages


@pytest.fixture
def request_(tmp_path: Path, store: ArtifactStore) -> Request:
    model = make_model_folder(tmp_path / "model")
    return prepare(
        parse_config({"model": {"path": str(model)}, "alpha": {"estimator": "farms"}}),
        store,
        tmp_path / "out",
    )


class _Process:
    """Stands for one that is over."""

    def terminate(self) -> None:
        """Nothing to end."""

    def wait(self) -> None:
        """Nothing to wait for."""


def _inputs(request: Request) -> dict[str, Any]:
    config = request.config
    return {"model": request.model, "alpha": config.alpha, "execution": config.execution}


def test_another_process_computes_alpha(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: True)
    deadline = time.monotonic() + 120
    with alpha_beside(request_):
        while lookup(alpha, request_.store, _inputs(request_)).miss is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    # it is known now, and nobody is asked again
    monkeypatch.setattr(flows.beside, "_begin", None)
    with alpha_beside(request_):
        pass


def test_the_run_finds_what_was_computed_beside(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_stages(monkeypatch)
    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: True)

    def at_once(request: Request, stage: Any, inputs: dict[str, Any]) -> _Process:
        run_stage(stage, request.store, inputs)
        return _Process()

    monkeypatch.setattr(flows.beside, "_begin", at_once)
    states = {stage["name"]: stage["state"] for stage in run(request_)["stages"]}
    assert states["alpha"] == "cached"
    assert states["sensitivity"] == states["allocate"] == "ran"


def test_a_process_that_fails_leaves_it_to_the_run(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_stages(monkeypatch)
    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: True)
    monkeypatch.setattr(flows.beside, "_begin", lambda *_: _Process())
    states = {stage["name"]: stage["state"] for stage in run(request_)["stages"]}
    assert states["alpha"] == "ran"


@pytest.mark.parametrize(
    "changes",
    [{"force": ("alpha",)}, {"stages": quantize_only}, {}],
    ids=["forced", "not asked for", "no GPU"],
)
def test_otherwise_no_process_begins(
    request_: Request, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.beside, "_begin", None)
    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: bool(changes))
    request = prepare(request_.config, request_.store, request_.out, **changes)
    with alpha_beside(request):
        pass


def test_what_a_gpu_solves_faster_is_left_to_it(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.beside, "_begin", None)
    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: True)
    hill = request_.config.alpha.model_copy(update={"estimator": "hill"})
    config = request_.config.model_copy(update={"alpha": hill})
    with alpha_beside(prepare(config, request_.store, request_.out)):
        pass


def test_the_process_beside_takes_no_gpu(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def begin(request: Request, stage: Any, inputs: dict[str, Any]) -> _Process:
        asked.append(inputs["execution"].device)
        return _Process()

    monkeypatch.setattr(flows.beside, "_uses_gpu", lambda _: True)
    monkeypatch.setattr(flows.beside, "_begin", begin)
    with alpha_beside(request_):
        pass
    assert asked == ["cpu"]
