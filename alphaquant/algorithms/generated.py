"""Calibration windows that the model writes itself, beside those of a text or in their place.

Divergence from the original is a mean over what the original expects, and that is what it writes. Such windows also reach
what a text of one kind leaves out: they begin anywhere in the vocabulary. LLM-QAT (arXiv 2305.17888) trains on what a model
writes, Williams et al. (NAACL 2025, arXiv 2410.17170) calibrate on it, and MoEQuant (arXiv 2505.03804) lets it write until its
experts' loads are even.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.errors import ConfigError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model
from alphaquant.progress import reporter, track

PIECE = 128
"""Tokens that are written at a stretch: a window takes several, because a step of many pieces costs little more than of one."""
AT_ONCE = 512
"""Pieces that are written at once, at most."""


def replaced(windows: int, share: float) -> list[int]:
    """Which of so many windows give way: that share of them, evenly spread, so that held-out ones have as large a part."""
    wanted = round(share * windows)
    return [at for at in range(windows) if (at + 1) * wanted // windows > at * wanted // windows]


def with_written(
    checkpoint: Checkpoint,
    windows: Tensor,
    share: float,
    seed: int,
    device: torch.device,
    at_once: int = AT_ONCE,
) -> Tensor:
    """`windows` `[windows, length]` with a `share` of them in 0 to 1 replaced by `written_windows`.

    Raises ConfigError for any other share.
    """
    if not 0 <= share <= 1:
        raise ConfigError(
            f"generated is the share of windows that the model writes, 0 to 1; it is {share}"
        )
    places, mixed = replaced(len(windows), share), windows.clone()
    if places:
        mixed[places] = written_windows(
            checkpoint, len(places), windows.shape[1], seed, device, at_once
        )
    reporter().note(
        f"calibration.generated: the model wrote {len(places)} of {len(windows)} windows"
    )
    return mixed


@timed("text")
@torch.no_grad()
def written_windows(
    checkpoint: Checkpoint,
    count: int,
    length: int,
    seed: int,
    device: torch.device,
    at_once: int = AT_ONCE,
) -> Tensor:
    """`count` windows of what the model writes, int64 `[count, length]`.

    Pieces begin as the tokenizer begins a text and with a token drawn evenly from its vocabulary; what follows is drawn
    from the model's predictions as they are. The same seed gives the same windows on the same device with as many pieces
    `at_once`. The whole model is in memory. Raises ModelError where it does not load.
    """
    model: Any = load_model(checkpoint.path, device, checkpoint.trust_remote_code)
    begin, words = _openings(checkpoint)
    piece = min(PIECE, max(length, len(begin) + 1))
    pieces = math.ceil(count * length / piece)
    dice = torch.Generator().manual_seed(seed)
    first = words[torch.randint(len(words), (pieces, 1), generator=dice)]
    batches = torch.cat([begin.expand(pieces, -1), first], dim=1).split(at_once)
    dice = torch.Generator(device).manual_seed(seed)
    steps = piece - batches[0].shape[1]
    written: list[list[Tensor]] = []
    for turn in track(range(len(batches) * steps), "written token", len(batches) * steps):
        if turn % steps == 0:
            latest, cache = batches[turn // steps].to(device), None
            written.append([latest])
        found = model(input_ids=latest, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        predicted = found.logits[:, -1].float().softmax(-1)
        latest = torch.multinomial(predicted, 1, generator=dice)
        written[-1].append(latest)
    tokens = torch.cat([torch.cat(batch, dim=1) for batch in written])
    return tokens.flatten()[: count * length].view(count, length).cpu()


def _openings(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Tokens that the tokenizer puts before any text, and all that may follow: its vocabulary without special ones."""
    tokenizer: Any = checkpoint.tokenizer
    around: list[int] = tokenizer("", verbose=False)["input_ids"]
    begin = [token for token in around if token == tokenizer.bos_token_id]
    rows = min(len(tokenizer), int(checkpoint.config.vocab_size))
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(rows) if token not in special]
    return torch.tensor(begin, dtype=torch.int64), torch.tensor(words, dtype=torch.int64)
