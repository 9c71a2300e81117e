"""Calibration as callers of the library give it: the name of a text source, texts, or tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alphaquant.errors import DataError
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import calibration_tokens

Calibration = (
    str | Sequence[str] | Sequence[Tensor] | Sequence[Sequence[int]] | Sequence[Mapping[str, Any]]
)
"""A text source, texts, or token windows as tensors, lists of ids or `{"input_ids": ...}`."""


def given_windows(
    calibration: Calibration, tokenizer: Any, samples: int, length: int, seed: int
) -> Tensor:
    """Token windows, int64 `[windows, length]`; of texts `samples` are drawn.

    Tokens are taken as they are where all windows have one length of at most `length`; others are joined and cut.
    Raises DataError for nothing, a mixture, or too little.
    """
    if isinstance(calibration, str):
        texts = load_documents(calibration, "calibration")
        return calibration_tokens(tokenizer, texts, samples, length, seed)
    rows = list(calibration)
    if not rows:
        raise DataError("calibration is empty; give texts, token windows, or the name of a dataset")
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) == len(rows):
        return calibration_tokens(tokenizer, texts, samples, length, seed)
    if texts:
        raise DataError("calibration holds texts and tokens; give one kind")
    ids = [_ids(row) for row in rows]
    if len({len(row) for row in ids}) == 1 and 2 <= len(ids[0]) <= length:
        return torch.stack(ids)
    joined = torch.cat(ids)
    if len(joined) < length:
        raise DataError(
            f"calibration has {len(joined)} tokens, one window needs {length}; give more, or a smaller sequence_length"
        )
    count = len(joined) // length
    return joined[: count * length].view(count, length)


def _ids(row: Any) -> Tensor:
    found = row["input_ids"] if isinstance(row, Mapping) else row
    return torch.as_tensor(found, dtype=torch.int64).flatten()
