"""Windows are cut as the protocol says."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphaquant.errors import DataError
from alphaquant.text.windows import calibration_tokens, evaluation_windows, tokenize


class Letters:
    """A tokenizer with one token per character."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) for char in text]}


def text_of(count: int) -> list[str]:
    """One document of `count` distinct characters."""
    return ["".join(chr(1000 + i) for i in range(count))]


def test_documents_are_joined_by_an_empty_line_and_tokenized_once() -> None:
    assert tokenize(Letters(), ["ab", "c"]).tolist() == [97, 98, 10, 10, 99]


@given(count=st.integers(4, 200), length=st.integers(2, 20), limit=st.none() | st.integers(1, 30))
def test_evaluation_windows_are_the_first_whole_ones_in_order(
    count: int, length: int, limit: int | None
) -> None:
    documents = text_of(count)
    if count < length:
        with pytest.raises(DataError):
            evaluation_windows(Letters(), documents, length, limit)
        return
    windows = evaluation_windows(Letters(), documents, length, limit)
    expected = count // length if limit is None else min(limit, count // length)
    assert windows.shape == (expected, length)
    assert torch.equal(windows.flatten(), tokenize(Letters(), documents)[: windows.numel()])


@given(seed=st.integers(0, 5), samples=st.integers(1, 10))
def test_calibration_windows_do_not_overlap_when_there_is_enough_text(
    seed: int, samples: int
) -> None:
    windows = calibration_tokens(Letters(), text_of(107), samples, 10, seed)
    assert windows.shape == (samples, 10)
    assert windows.dtype == torch.int64
    assert windows.unique().numel() == windows.numel()
    assert bool((windows.diff(dim=1) == 1).all())


def test_the_seed_decides_the_choice_of_windows() -> None:
    first = calibration_tokens(Letters(), text_of(500), 8, 10, seed=0)
    assert torch.equal(first, calibration_tokens(Letters(), text_of(500), 8, 10, seed=0))
    assert not torch.equal(first, calibration_tokens(Letters(), text_of(500), 8, 10, seed=1))


def test_too_few_windows_overlap_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        windows = calibration_tokens(Letters(), text_of(25), 8, 10, seed=0)
    assert windows.shape == (8, 10)
    assert bool((windows.diff(dim=1) == 1).all())
    assert "has 2 windows of 10 tokens, 8 were asked for" in caplog.text


@given(count=st.integers(20, 79), samples=st.integers(2, 40), seed=st.integers(0, 3))
def test_windows_that_are_held_out_share_no_text_with_others(
    count: int, samples: int, seed: int
) -> None:
    windows = calibration_tokens(Letters(), text_of(count), samples, 10, seed)
    assert windows.shape == (samples, 10)
    last = max(1, samples // 8)
    assert not set(windows[-last:].flatten().tolist()) & set(windows[:-last].flatten().tolist())


def test_a_pool_starts_with_the_windows_drawn_without_one_and_repeats_none() -> None:
    plain = calibration_tokens(Letters(), text_of(200), 4, 10, seed=0)
    pool = calibration_tokens(Letters(), text_of(200), 4, 10, seed=0, pool=3)
    assert torch.equal(pool[:4], plain)
    assert len(pool) == 12
    everything = calibration_tokens(Letters(), text_of(200), 4, 10, seed=0, pool=100)
    assert sorted(everything.flatten().tolist()) == list(range(1000, 1200))


def test_exactly_enough_text_gives_every_window_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        windows = calibration_tokens(Letters(), text_of(30), 3, 10, seed=0)
    assert sorted(windows.flatten().tolist()) == list(range(1000, 1030))
    assert caplog.text == ""


def test_less_than_one_window_names_the_tokens_found_and_needed() -> None:
    with pytest.raises(
        DataError, match=r"9 tokens, one window needs 10.*calibration\.sequence_length"
    ):
        calibration_tokens(Letters(), text_of(9), 1, 10, seed=0)
    with pytest.raises(
        DataError, match=r"9 tokens, one window needs 10.*evaluation\.sequence_length"
    ):
        evaluation_windows(Letters(), text_of(9), 10)


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        evaluation_windows(Letters(), text_of(9), 1)
