"""The models that the comparison trains: their shapes suit every format, and the demo's training makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alphaquant.demo.training import Recipe, train_model
from alphaquant.models.live import LiveCheckpoint
from benchmarks.rivals.formats import FORMATS, quantized_linears
from benchmarks.rivals.models import DESIGNS, doubled, training_documents

_TEXT = "Return the value of the item in the list. Raise an error if it is not there. " * 40


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def _tiny(end: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=end,
        )
    )


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_every_format_keeps_its_own_group_size(name: str) -> None:
    with torch.device("meta"):
        model = DESIGNS[name].make(0)
    specs = quantized_linears(LiveCheckpoint(model).specs)
    assert {kind.fitting(specs).group for kind in FORMATS.values()} == {128, 64, 32}


@pytest.mark.usefixtures("_torch_as_it_was")
@pytest.mark.parametrize("squared", [True, False])
def test_training_serves_dense_models_and_repeats_itself(squared: bool) -> None:
    recipe = Recipe(
        vocabulary=300, length=32, batch=2, dropout=0.0, squared=squared, warmup=1, threads=1
    )
    first, again = (
        train_model(_tiny, [_TEXT], [_TEXT], seed=0, steps=3, recipe=recipe)[0] for _ in range(2)
    )
    other = train_model(_tiny, [_TEXT], [_TEXT], seed=0, steps=3, recipe=replace(recipe, batch=1))[
        0
    ]
    weights = [dict(m.named_parameters()) for m in (first, again, other)]
    assert not any("parametrizations" in name for name in weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_step_whose_gradient_is_not_finite_is_left_out() -> None:
    calls = 0

    def sometimes(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * (float("nan") if calls == 2 else 1)

    def make(end: int) -> PreTrainedModel:
        model = _tiny(end)
        model.get_input_embeddings().weight.register_hook(sometimes)
        return model

    recipe = Recipe(vocabulary=300, length=32, batch=2, dropout=0.0, squared=False, threads=1)
    model, _ = train_model(make, [_TEXT], [_TEXT], seed=0, steps=3, recipe=recipe)
    assert calls == 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_grown_model_has_every_block_twice_and_says_nearly_the_same() -> None:
    torch.manual_seed(0)
    small = _tiny(0)
    grown = small.state_dict()
    for _ in range(3):
        grown = doubled(grown)
    config = LlamaConfig(**{**small.config.to_dict(), "num_hidden_layers": 8})
    deep = LlamaForCausalLM(config)
    deep.load_state_dict(grown)
    tokens = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        before, after = (model.eval()(tokens).logits for model in (small, deep))
        none = small.lm_head(small.model.norm(small.model.embed_tokens(tokens)))
    assert float((after - before).norm()) < 0.3 * float((none - before).norm())


def test_a_text_file_becomes_several_documents_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {number}\n" for number in range(450)))
    found = training_documents([str(file)])
    assert len(found) == 3
    assert "".join(found) == file.read_text()
    assert len(training_documents(["builtin", str(file)])) > 103
