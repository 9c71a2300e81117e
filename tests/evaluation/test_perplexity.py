"""Perplexity follows its stated protocol."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from alphaquant.evaluation.perplexity import perplexity, window_losses
from alphaquant.evaluation.predictions import Predictions
from alphaquant.progress import reporting_to
from tests.evaluation.models import Bigram, random_bigram, random_windows


class Recorder:
    """Keeps the progress it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def update(self, what: str, done: int, total: int) -> None:
        self.seen.append((what, done, total))

    def note(self, message: str) -> None:
        raise AssertionError(message)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    assert perplexity(Bigram(torch.zeros(11, 11)), random_windows(3, 5)) == pytest.approx(11)


def test_a_sure_and_right_model_has_perplexity_one() -> None:
    windows = torch.arange(8).repeat(2, 1)
    table = torch.full((8, 8), -math.inf)
    table[torch.arange(8), (torch.arange(8) + 1) % 8] = 0.0
    assert perplexity(Bigram(table), windows) == 1


def test_it_is_the_exponential_of_the_mean_of_all_token_losses() -> None:
    model, windows = random_bigram(), random_windows(7, 9)
    p = model.table.detach().double().softmax(dim=1)
    losses = [-math.log(p[a, b]) for row in windows.tolist() for a, b in pairwise(row)]
    assert len(losses) == 7 * 8
    assert perplexity(model, windows) == pytest.approx(
        math.exp(sum(losses) / len(losses)), rel=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_the_batch_size_changes_nothing_but_the_calls(batch_size: int) -> None:
    model, windows = random_bigram(), random_windows(7, 9)
    torch.testing.assert_close(
        window_losses(model.predict(windows, batch_size), windows),
        window_losses(model.predict(windows), windows),
    )
    assert max(model.model.calls[:-1]) <= batch_size


def test_bfloat16_logits_are_scored_in_fp32() -> None:
    windows = torch.zeros(1, 3, dtype=torch.int64)
    hidden = [torch.zeros(3, 1000, dtype=torch.bfloat16)]
    losses = window_losses(Predictions(hidden, nn.Identity()), windows)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx([math.log(1000)])  # 6.9 would be 6.90625 in bfloat16


def test_progress_counts_batches() -> None:
    recorder = Recorder()
    with reporting_to(recorder):
        perplexity(random_bigram(), random_windows(5, 4), batch_size=2, what="some text")
    assert recorder.seen == [("some text", done, 3) for done in range(4)]


def test_an_overflowing_perplexity_is_infinite() -> None:
    table = torch.full((2, 2), -2000.0)
    table[:, 0] = 0.0
    assert perplexity(Bigram(table), torch.ones(1, 4, dtype=torch.int64)) == math.inf
