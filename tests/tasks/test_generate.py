"""Stage generate on a tiny model: a share of the windows gives way to what the model writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.config import ExecutionConfig
from alphaquant.errors import ConfigError
from alphaquant.progress import reporting_to
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import StageResult, run_stage
from tasks.generate import generate
from tests.notes import Notes
from tests.tasks.test_balance import drawn, ref, windows
from tests.tiny import make_model


def _written(
    model: Path, store: ArtifactStore, share: float, execution: ExecutionConfig | None = None
) -> StageResult:
    inputs = {
        "model": ref(model),
        "tokens": drawn(model, store, 1).ref,
        "share": share,
        "seed": 0,
        "execution": execution or ExecutionConfig(device="cpu"),
    }
    return run_stage(generate, store, inputs)


def test_a_third_of_the_windows_gives_way(tmp_path: Path, store: ArtifactStore) -> None:
    model, notes = make_model(tmp_path / "llama", "llama"), Notes()
    with reporting_to(notes):
        found = windows(store, _written(model, store, 1 / 3))
    text = windows(store, drawn(model, store, 1))
    changed = [at for at in range(len(text)) if not torch.equal(found[at], text[at])]
    assert changed == [2, 5]
    assert any("the model wrote 2 of 6 windows" in line for line in notes.said)


def test_what_the_model_writes_needs_no_more_of_a_text_than_its_size(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model = make_model(tmp_path / "llama", "llama")
    found, text = (
        windows(store, one) for one in (_written(model, store, 1), drawn(model, store, 1))
    )
    assert found.shape == text.shape
    assert not (found == text).all(-1).any()


def test_a_model_that_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model = make_model(tmp_path / "llama", "llama")
    tight = ExecutionConfig(device="cpu", memory_limit="1MB")
    with pytest.raises(
        ConfigError, match=r"generated needs the whole model .* calibration.generated=0"
    ):
        _written(model, store, 0.5, tight)
