"""Calibration of every kind becomes windows of one length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alphaquant.errors import DataError
from alphaquant.text.given import given_windows
from tests.tiny import byte_tokenizer


def windows(calibration: Any, length: int = 8) -> torch.Tensor:
    return given_windows(calibration, byte_tokenizer(), 3, length, 0)


def test_texts_are_drawn_from(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 4
    file = tmp_path / "text.txt"
    file.write_text(text)
    drawn = windows([text])
    assert drawn.shape == (3, 8)
    assert torch.equal(windows(str(file)), drawn)


@pytest.mark.parametrize("kind", ["tensor", "row", "list", "mapping"])
def test_tokens_of_one_length_stay_as_they_are(kind: str) -> None:
    rows = torch.arange(12).view(2, 6)
    given: dict[str, Any] = {
        "tensor": list(rows),
        "row": list(rows.split(1)),
        "list": rows.tolist(),
        "mapping": [{"input_ids": row, "attention_mask": [1] * 6} for row in rows.tolist()],
    }
    assert torch.equal(windows(given[kind]), rows)


def test_others_are_joined_and_cut() -> None:
    found = windows([list(range(5)), list(range(5, 12)), [12]], length=4)
    assert torch.equal(found, torch.arange(12).view(3, 4))
    assert windows([list(range(20))], length=8).shape == (2, 8)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration is empty"),
        (["text", [1, 2]], "holds texts and tokens"),
        ([[1, 2], [3]], "has 3 tokens, one window needs 8"),
    ],
)
def test_too_little_is_an_error(calibration: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        windows(calibration)
