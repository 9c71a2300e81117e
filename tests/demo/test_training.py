"""The pieces of the training script do what the model's card says of them."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeForCausalLM

from alphaquant.demo.train import model_config
from alphaquant.demo.training import (
    END,
    SignedSquare,
    add_dropout,
    batches,
    imbalance,
    learning_rate,
    matrices,
    optimizer_of,
    save,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(
        ["Return the value of the item in the list.", "Raise an error if it is not."]
    )


@pytest.fixture
def model() -> OlmoeForCausalLM:
    torch.manual_seed(0)
    return OlmoeForCausalLM(model_config(0)).float()


def test_batches_depend_on_the_seed_and_show_every_document() -> None:
    documents = [torch.full((300,), n) for n in range(40)]
    first = list(islice(batches(documents, seed=0), 2))
    assert [batch.shape for batch in first] == [(16, 256)] * 2
    again = list(islice(batches(documents, seed=0), 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], next(batches(documents, seed=1)))
    assert len(torch.cat(first).unique()) >= 30


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 1000) for step in range(1001)]
    assert rates[99] == max(rates) == 1
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_signed_squares_keep_every_weight_and_its_name(model: OlmoeForCausalLM) -> None:
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    squared = matrices(model)
    assert len(squared) == 4 * 6
    for module, name in squared:
        parametrize.register_parametrization(module, name, SignedSquare())
    decayed = optimizer_of(model).param_groups[0]["params"]
    assert len(decayed) == len(squared)
    for module, name in squared:
        parametrize.remove_parametrizations(module, name)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name].data, weight)


def test_dropout_acts_in_training_only(model: OlmoeForCausalLM) -> None:
    tokens = torch.arange(16).view(1, 16)

    def logits() -> Tensor:
        with torch.no_grad():
            return model(tokens).logits

    plain = model.eval() and logits()
    add_dropout(model, 0.5)
    assert torch.equal(logits(), plain)
    model.train()
    assert not torch.equal(logits(), plain)


def test_imbalance_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    even = torch.eye(8).repeat(10, 1) * 20
    collapsed = torch.zeros(80, 8)
    collapsed[:, 3] = 50
    assert imbalance((even,), 1).item() == pytest.approx(1, rel=1e-3)
    assert imbalance((collapsed,), 1).item() == pytest.approx(8, rel=1e-3)
    assert imbalance((even, collapsed), 1).item() == pytest.approx(4.5, rel=1e-3)


def test_one_blocks_overuse_does_not_hide_anothers_neglect() -> None:
    first, second = torch.full((40, 4), -20.0), torch.full((40, 4), -20.0)
    first[:20, 0], first[20:, 1] = 0, 0
    second[:20, 2], second[20:, 3] = 0, 0
    assert imbalance((first, second), 1).item() == pytest.approx(2, rel=1e-3)


def test_a_saved_model_is_bf16_and_loads_with_its_tokenizer(
    tmp_path: Path, model: OlmoeForCausalLM, tokenizer: Any
) -> None:
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight.data)
    text = "Return the item."
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.eos_token == END
    assert "TokenizersBackend" not in (tmp_path / "tokenizer_config.json").read_text()
    assert all(file.stat().st_mode & 0o044 for file in tmp_path.iterdir())


def test_documents_are_shuffled_without_touching_the_global_generator() -> None:
    random.seed(3)
    state = random.getstate()
    next(batches([torch.ones(5000, dtype=torch.int64)], seed=0))
    assert random.getstate() == state
