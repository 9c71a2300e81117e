"""The shipped model is what its card says: small, trained, balanced, and ruined by coarse rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphaquant.config.file import load_config
from alphaquant.demo import demo_config_path, demo_model_path
from alphaquant.demo.measure import (
    COARSE,
    expert_load,
    heldout_windows,
    rounded,
    unigram_perplexity,
)
from alphaquant.evaluation.perplexity import perplexity


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def windows(tokenizer: Any) -> Tensor:
    """Every fourth window of the held-out text."""
    return heldout_windows(tokenizer)[::4]


@pytest.fixture(scope="module")
def heldout_perplexity(model: Any, windows: Tensor) -> float:
    return perplexity(model, windows)


def test_the_weights_are_at_most_six_million_bytes_of_bfloat16(model: Any) -> None:
    file = demo_model_path() / "model.safetensors"
    assert file.stat().st_size <= 6_000_000
    assert model.config.dtype in (torch.bfloat16, torch.float32)
    assert AutoModelForCausalLM.from_pretrained(demo_model_path()).dtype == torch.bfloat16


def test_held_out_perplexity_is_at_most_an_eighth_of_a_unigram_models(
    tokenizer: Any, windows: Tensor, heldout_perplexity: float
) -> None:
    assert heldout_perplexity <= unigram_perplexity(tokenizer, windows) / 8


def test_int2_round_to_nearest_ruins_it(
    model: Any, windows: Tensor, heldout_perplexity: float
) -> None:
    assert perplexity(rounded(model, COARSE), windows) > 2 * heldout_perplexity


def test_every_expert_works_and_none_does_it_all(model: Any, windows: Tensor) -> None:
    load = expert_load(model, windows)
    assert load.shape == (4, 16)
    torch.testing.assert_close(load.mean(dim=1), torch.ones(4))
    assert load.min() > 0.1
    assert load.max() < 4


def test_the_unigram_model_knows_the_training_frequencies(tokenizer: Any) -> None:
    end = torch.full((1, 4), tokenizer.eos_token_id)
    common = torch.full((1, 4), tokenizer.convert_tokens_to_ids("Ġthe"))
    assert unigram_perplexity(tokenizer, common) < 100 < unigram_perplexity(tokenizer, end)


def test_rounding_leaves_routers_norms_and_the_original_alone(model: Any) -> None:
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    changed = {
        name
        for name, weight in rounded(model, COARSE).named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert len(changed) == 4 * 6
    assert not any("norm" in name or name.endswith("mlp.gate.weight") for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_the_tokenizer_gives_any_text_back(tokenizer: Any) -> None:
    text = "Return naïve 漢字 — \t`x`\n\n  twice."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_continues_a_sentence(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("Return a list of", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]


def test_the_card_states_the_measured_figures(
    tokenizer: Any, model: Any, windows: Tensor, heldout_perplexity: float
) -> None:
    card = (demo_model_path() / "README.md").read_text(encoding="utf-8")
    rows = dict(
        line.strip("| ").split(" | ") for line in card.splitlines() if " | " in line.strip("| ")
    )
    assert rows["parameters"].startswith(f"{sum(p.numel() for p in model.parameters()):,}")
    stated = next(value for name, value in rows.items() if name.startswith("held-out perplexity"))
    assert math.log(float(stated)) == pytest.approx(math.log(heldout_perplexity), abs=0.15)


def test_the_demo_run_is_offline_and_fits_the_model() -> None:
    config = load_config(demo_config_path())
    assert config.model.path is None
    assert config.calibration.dataset == config.evaluation.dataset == "builtin"
    assert config.calibration.sequence_length == config.evaluation.sequence_length == 256
    assert config.allocation.policy == "budget"
    assert config.allocation.target_bits == 4.25
    assert config.router.method == "align+block"
