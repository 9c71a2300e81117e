"""Fidelity equals its definitions on models whose distributions are known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from alphaquant.errors import ModelError
from alphaquant.evaluation import predictions
from alphaquant.evaluation.fidelity import TokenComparison, compare, compare_tokens, fidelity_scores
from alphaquant.evaluation.perplexity import perplexity
from alphaquant.evaluation.scores import Score, scores_table
from tests.evaluation.models import Bigram, random_bigram, random_windows


def by_metric(scores: list[Score], model: str = "quantized") -> dict[str, Score]:
    return {score.metric: score for score in scores if score.model == model}


def compared(original: Bigram, quantized: Bigram, windows: Tensor) -> list[Score]:
    return compare(original.predict(windows), quantized.predict(windows), windows)


def test_a_model_against_itself_is_perfect() -> None:
    model = random_bigram()
    scores = by_metric(compared(model, model, random_windows(6, 9)))
    assert scores["kl_mean"].value == 0
    assert scores["kl_p999"].value == 0
    assert scores["flips"].value == 0
    assert scores["top1_agreement"].value == 1
    assert (scores["perplexity_ratio"].low, scores["perplexity_ratio"].high) == (1, 1)


def test_every_number_equals_its_definition() -> None:
    original, quantized, windows = random_bigram(), random_bigram(noise=0.5), random_windows(6, 9)
    p, q = (model.table.detach().double().softmax(dim=1) for model in (original, quantized))
    pairs = [(a, b) for row in windows.tolist() for a, b in pairwise(row)]
    kl = [float((p[a] * (p[a].log() - q[a].log())).sum()) for a, _ in pairs]
    top = [(int(p[a].argmax()), int(q[a].argmax()), b) for a, b in pairs]
    scores = by_metric(compared(original, quantized, windows))
    assert scores["kl_mean"].value == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert scores["kl_p999"].value == pytest.approx(max(kl), rel=1e-5)
    assert scores["top1_agreement"].value == pytest.approx(
        sum(x == y for x, y, _ in top) / len(top)
    )
    flips = sum((x == b) != (y == b) for x, y, b in top)
    assert 0 < flips < len(top)
    assert scores["flips"].value == pytest.approx(flips / len(top))
    assert scores["perplexity"].value == pytest.approx(perplexity(quantized, windows), rel=1e-6)


def test_rows_are_those_of_the_scores_table_with_both_models() -> None:
    windows = random_windows(6, 9)
    first, second = (random_bigram(noise=noise).predict(windows) for noise in (0.0, 0.2))
    scores = compare(first, second, windows, label="int4")
    table = scores_table(scores)
    assert list(table.columns) == ["task", "metric", "value", "stderr", "low", "high", "model"]
    assert list(zip(table["metric"], table["model"], strict=True)) == [
        ("perplexity", "original"),
        ("perplexity", "int4"),
        ("perplexity_ratio", "int4"),
        ("kl_mean", "int4"),
        ("kl_p999", "int4"),
        ("top1_agreement", "int4"),
        ("flips", "int4"),
    ]
    assert set(table["task"]) == {"heldout"}
    assert bool((table["low"] <= table["value"]).all())
    assert bool((table["value"] <= table["high"]).all())


def test_pairing_makes_the_ratio_far_more_certain_than_either_perplexity() -> None:
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(50, 1, generator=generator).expand(50, 20)
    noise = 0.01 * torch.randn(50, 20, generator=generator)
    nothing = torch.zeros(50, 20)
    tokens = TokenComparison(
        nothing, 3 + hardness, 3.1 + hardness + noise, nothing > 1, nothing > 1
    )
    scores = by_metric(fidelity_scores(tokens))
    ratio, perplexities = scores["perplexity_ratio"], scores["perplexity"]
    assert ratio.value == pytest.approx(math.exp(0.1), rel=0.01)
    assert ratio.stderr / ratio.value < 0.02 * perplexities.stderr / perplexities.value


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_and_slices_of_positions_change_nothing(
    monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    original, quantized, windows = random_bigram(), random_bigram(noise=0.3), random_windows(6, 10)
    whole = compare_tokens(original.predict(windows), quantized.predict(windows), windows)
    monkeypatch.setattr(predictions, "POSITIONS", 4)
    first, second = (model.predict(windows, batch_size) for model in (original, quantized))
    sliced = compare_tokens(first, second, windows)
    assert sliced.kl.shape == (6, 9)
    for name in ("kl", "loss_original", "loss_quantized", "agrees", "flips"):
        first, second = getattr(whole, name), getattr(sliced, name)
        assert isinstance(first, Tensor)
        torch.testing.assert_close(first, second)


def test_tokens_that_both_models_rule_out_add_nothing() -> None:
    table = random_bigram().table.detach().clone()
    table[:, 3] = -math.inf
    windows = random_windows(4, 6).clamp(max=2)
    scores = by_metric(compared(Bigram(table), Bigram(table + 0.0), windows))
    assert scores["kl_mean"].value == 0


def test_a_token_that_only_the_quantized_model_rules_out_costs_infinitely_much() -> None:
    table = random_bigram().table.detach()
    broken = table.clone()
    broken[:, 3] = -math.inf
    scores = by_metric(compared(Bigram(table), Bigram(broken), random_windows(4, 6).clamp(max=2)))
    assert scores["kl_mean"].value == math.inf
    assert math.isnan(scores["kl_mean"].stderr)


def test_models_of_different_vocabularies_cannot_be_compared() -> None:
    with pytest.raises(ModelError, match="11 and 13 tokens"):
        compared(random_bigram(), random_bigram(vocabulary=13), random_windows(2, 4))


def test_the_same_comparison_gives_the_same_intervals() -> None:
    arguments = random_bigram(), random_bigram(noise=0.5), random_windows(6, 9)
    assert compared(*arguments) == compared(*arguments)


def test_training_mode_does_not_reach_the_scores() -> None:
    model = Bigram(torch.zeros(11, 11)).train()  # it refuses to predict in that mode
    assert perplexity(model, random_windows(2, 4)) == pytest.approx(11)


def test_logits_exist_for_one_slice_of_one_window_at_a_time() -> None:
    seen: list[int] = []

    class Counting(Bigram):
        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> object:
            seen.append(inputs_embeds.shape[:-1].numel())
            return super().forward(inputs_embeds, use_cache)

    model, windows = Counting(random_bigram().table.detach()), random_windows(3, 600)
    compared(model, model, windows)
    perplexity(model, windows)
    assert set(seen) == {predictions.POSITIONS, 599 - 2 * predictions.POSITIONS}
