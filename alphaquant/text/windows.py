"""Token windows: how documents become the fixed-length rows that calibration and evaluation read."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.errors import DataError

SEPARATOR = "\n\n"

log = logging.getLogger(__name__)


def tokenize(tokenizer: Any, documents: list[str]) -> Tensor:
    """The documents joined by an empty line as one row of token ids, int64 `[tokens]`.

    Special tokens are those that the tokenizer puts around any text: once, not per document.
    """
    ids = tokenizer(SEPARATOR.join(documents), verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def held_out(windows: int) -> range:
    """Calibration windows that judge what was learnt from the others: the last eighth; of one, that one."""
    return range(windows - max(1, windows // 8), windows)


@timed("text")
def calibration_tokens(
    tokenizer: Any, documents: list[str], samples: int, length: int, seed: int, pool: int = 1
) -> Tensor:
    """`samples` windows drawn from the joined documents, int64 `[samples, length]`.

    Non-overlapping windows in seeded order when the text has enough of them, up to `pool` times as many
    where more can be used, the first of them the same; otherwise windows at random offsets, which
    overlap, and a warning. The last eighth, which tuning and repairs hold out, then comes from a part of
    the text of its own, if there are two windows of text. Raises DataError below one.
    """
    tokens = tokenize(tokenizer, documents)
    _require_window(tokens, length, "calibration")
    generator = torch.Generator().manual_seed(seed)
    distinct = len(tokens) // length
    if distinct >= samples:
        order = torch.randperm(distinct, generator=generator)[: samples * pool]
        return tokens[: distinct * length].view(distinct, length)[order].clone()
    log.warning(
        "calibration text has %d windows of %d tokens, %d were asked for: windows overlap",
        distinct,
        length,
        samples,
    )
    held = len(held_out(samples)) if distinct > 1 and samples > 1 else 0
    cut = len(tokens) - max(length, len(tokens) // 8) if held else len(tokens)
    parts = [(tokens[:cut], samples - held), (tokens[cut:], held)]
    return torch.cat([_anywhere(part, count, length, generator) for part, count in parts if count])


def _anywhere(tokens: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` windows at random offsets, `[count, length]`."""
    starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


@timed("text")
def evaluation_windows(
    tokenizer: Any, documents: list[str], length: int, limit: int | None = None
) -> Tensor:
    """The first `limit` non-overlapping windows of the joined documents, int64 `[windows, length]`.

    The protocol of GPTQ (Frantar et al., 2023): one tokenisation, a shorter rest is left out.
    Raises DataError below one window of text.
    """
    tokens = tokenize(tokenizer, documents)
    _require_window(tokens, length, "evaluation")
    count = len(tokens) // length
    if limit is not None:
        count = min(count, limit)
    return tokens[: count * length].view(count, length).clone()


def _require_window(tokens: Tensor, length: int, purpose: str) -> None:
    if length < 2:
        raise DataError(f"{purpose} windows of {length} token predict nothing; use at least 2")
    if len(tokens) < length:
        raise DataError(
            f"{purpose} text has {len(tokens)} tokens, one window needs {length}; "
            f"use a longer text or lower {purpose}.sequence_length"
        )
