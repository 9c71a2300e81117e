"""The card says what a checkpoint is and how it loads, and what it says of transformers is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError
from alphaquant.export.model_card import facts_of, model_card, plan_figure, read_facts, write_card
from alphaquant.models.stock import transformers_needs
from tests.export.packed_models import (
    always,
    by_block,
    exported,
    make_wide,
)


def test_other_formats_need_our_loader(tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "llama")
    _, packed = exported(checkpoint, always("int4-g32"), "gptq", tmp_path)
    assert transformers_needs(packed) == "alphaquant.load"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    checkpoint = make_wide(tmp_path / "model", "olmoe")
    return exported(checkpoint, by_block, "compressed-tensors", tmp_path)[1]


def plan_table() -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"linear": f"model.layers.{at}.x", "role": "q", "block": at, "expert": None, "rows": 64}
        | {"cols": 64, "format": name, "group_size": 32, "symmetric": True}
        | {"bits_per_weight": bits, "activation": None}
        for at, (name, bits) in enumerate([("int8", 8.5), ("int4", 4.5)])
    ]
    return pd.DataFrame(rows)


def score_table() -> pd.DataFrame:
    rows = [
        ("heldout", "perplexity", 26.571, "original"),
        ("heldout", "perplexity", 26.68, "quantized"),
        ("heldout", "kl_mean", 0.00695, "quantized"),
        ("heldout", "flips", 3.0, "quantized"),
        ("arc_easy", "acc", 0.5, "quantized"),
        ("arc_easy", "acc", -0.01, "change"),
    ]
    return pd.DataFrame(rows, columns=["task", "metric", "value", "model"])


def test_a_card_tells_what_was_measured(packed: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    (original / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: [en]\nwidget: x\n---\n# Original\n"
    )
    facts = facts_of(original, ModelConfig(path="allenai/OLMoE"), plan_table(), score_table())
    write_card(
        packed, facts, figure=plan_figure(plan_table()), run={"run_id": "1"}, consumers=["vllm"]
    )
    text = (packed / "README.md").read_text()
    header, body = text.split("---\n")[1:3]
    assert yaml.safe_load(header) == {
        "base_model": "allenai/OLMoE",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alphaquant", "compressed-tensors"],
        "license": "apache-2.0",
        "language": ["en"],
    }
    assert "# OLMoE in 6.50 bits per weight" in body
    assert "| `int8-g32` | 50.0% |" in body
    assert "| perplexity, held-out text | 26.57 | 26.68 |" in body
    assert "| KL to the original, nats per token |  | 0.00695 |" in body
    assert "| arc_easy acc |  | 0.5 |" in body
    assert "flips" not in body
    assert "![formats by role](plan.png)" in body
    assert 'alphaquant.load("packed")' in body
    assert "import alphaquant.hf" in body
    assert "vllm serve packed" in body
    assert read_facts(packed) == facts


def test_only_consumers_that_passed_are_named(packed: Path, tmp_path: Path) -> None:
    facts = facts_of(tmp_path, ModelConfig(path=str(tmp_path)), plan_table(), None)
    text = model_card(packed, facts, name="me/model")
    assert "Serve" not in text
    assert "Scores" not in text
    assert "base_model:" not in text
    assert "plan.png" not in text
    assert f"`{tmp_path.name}`, compressed" in text
    for consumer, command in [("sglang", "--model-path me/model"), ("gptqmodel", "GPTQModel.load")]:
        assert command in model_card(packed, facts, name="me/model", consumers=[consumer])


def test_a_folder_without_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"has no card of AlphaQuant \(alphaquant\.json is missing"
    ):
        read_facts(tmp_path)
