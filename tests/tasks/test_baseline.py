"""Stages baseline and answers: runs that differ in their plan evaluate the original once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from alphaquant.config.file import load_config
from alphaquant.store.artifacts import ArtifactStore
from flows.preflight import prepare
from flows.runner import run
from tests.tiny import make_model

pytestmark = pytest.mark.slow


def test_a_sweep_runs_the_original_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: Counter[str] = Counter()
    forward = LlamaModel.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.layers[0], LlamaDecoderLayer):  # not a walk over single blocks
            passes["original" if self.config.name_or_path == str(model) else "compressed"] += 1
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    model, text = make_model(tmp_path / "model", max_position_embeddings=256), tmp_path / "text.txt"
    words = random.Random(0).choices(["alpha", "tail", "expert", "router", "bits"], k=900)
    text.write_text(" ".join(words))
    settings = [
        f"model.path={model}",
        f"calibration.dataset={text}",
        "calibration.samples=4",
        f"evaluation.dataset={text}",
        "evaluation.sequence_length=256",
        "evaluation.tasks=[builtin_rolling]",
        "evaluation.limit=2",
        "quantization.group_size=16",
        "allocation.formats=[int3,int4,int8]",
        "comparison.uniform=[int4]",
        "execution.batch_size=1",
    ]
    store, seen, scores = ArtifactStore(tmp_path / "store"), [], []
    for bits in (5, 6):
        config = load_config(None, [*settings, f"allocation.target_bits={bits}"])
        summary = run(prepare(config, store, tmp_path / f"out-{bits}"))
        seen.append(dict(passes))
        scores.append(summary["scores"])
        passes.clear()
    ruler = (
        2 * 2
    )  # its model is loaded as the original: the run's own plan and a rival, on two windows
    once = seen[0]["compressed"]
    assert once > 2  # windows, and pieces of the task's documents
    assert seen[0]["original"] == once + ruler
    assert seen[1] == {"compressed": once, "original": ruler}
    assert scores[0]["perplexity"]["original"] == scores[1]["perplexity"]["original"]
    assert scores[0]["kl"] != scores[1]["kl"]
