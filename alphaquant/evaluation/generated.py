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
from alphaquant.errors import ConfigError, ModelError
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import WIDE_IN_PASSES, all_cores, calibration_dtype
from alphaquant.models.experts import dense_passes, has_experts
from alphaquant.models.footprint import embedding_entry
from alphaquant.models.loading import load_whole
from alphaquant.models.roomy_cache import make_room
from alphaquant.progress import reporter, track

PIECE = 128
"""Tokens that are written at a stretch: a window takes several, because a step of many pieces costs little more than of one."""
_PIECES = 64
"""Pieces that are written at once in place of a window of a forward pass, at most."""
_LOGITS = 5
"""fp64 copies of a token's predictions while the next one is drawn."""


def with_written(
    checkpoint: Checkpoint, windows: Tensor, share: float, seed: int, room: Room
) -> Tensor:
    """`windows` `[windows, length]` with a `share` of them, in 0 to 1, replaced by what the model writes.

    Raises ConfigError for any other share, or where the whole model does not fit into the room.
    """
    if not 0 <= share <= 1:
        raise ConfigError(
            f"generated is the share of windows that the model writes, 0 to 1; it is {share}"
        )
    places, mixed = replaced(len(windows), share), windows.clone()
    if places:
        room.check_writing(checkpoint)
        at_once = room.beside_writing(
            checkpoint, _PIECES * room.batch_size, _piece_bytes(checkpoint, room)
        )
        mixed[places] = written_windows(
            checkpoint, len(places), windows.shape[1], seed, room.device, at_once
        )
    reporter().note(
        f"calibration.generated: the model wrote {len(places)} of {len(windows)} windows"
    )
    return mixed


def replaced(windows: int, share: float) -> list[int]:
    """Which of so many windows give way, at least one unless the share is 0.

    They are evenly spread, so that the held-out ones have as large a part.
    """
    wanted = max(round(share * windows), share > 0)
    return [at for at in range(windows) if (at + 1) * wanted // windows > at * wanted // windows]


@timed("text")
@torch.no_grad()
def written_windows(
    checkpoint: Checkpoint,
    count: int,
    length: int,
    seed: int,
    device: torch.device,
    at_once: int,
) -> Tensor:
    """`count` windows of what the model writes, int64 `[count, length]`.

    Pieces begin as the tokenizer begins a text and with a token drawn evenly from its vocabulary; what follows is drawn
    from the model's predictions as they are. The seed decides every draw, whatever number of pieces is written `at_once`.
    The whole model is in memory. Raises ModelError where it does not load, or keeps no keys and values.
    """
    dtype = calibration_dtype(device, checkpoint.config.hidden_size)
    model = load_whole(checkpoint, device, dtype)
    like = torch.empty(0, checkpoint.config.hidden_size, dtype=dtype, device=device)
    routed = has_experts(model)
    begin, words = _openings(checkpoint)
    piece = min(PIECE, max(length, len(begin) + 2))
    pieces, steps = math.ceil(count * length / piece), piece - len(begin) - 1
    dice = torch.Generator().manual_seed(seed)
    first = words[torch.randint(len(words), (pieces, 1), generator=dice)]
    openings = torch.cat([begin.expand(pieces, -1), first], dim=1).split(at_once)
    draws = torch.rand(pieces, steps, generator=dice, dtype=torch.float64).split(at_once)
    written: list[list[Tensor]] = []
    for turn in track(range(len(openings) * steps), "written token", len(openings) * steps):
        batch, step = divmod(turn, steps)
        if step == 0:
            latest, cache = openings[batch].to(device), None
            written.append([latest])
        with (
            all_cores(like.shape[-1], WIDE_IN_PASSES),
            dense_passes(routed, latest.numel(), like),
        ):
            found = model(input_ids=latest, past_key_values=cache, use_cache=True)
        cache = getattr(found, "past_key_values", None)
        if cache is None:
            raise ModelError(
                f"{checkpoint.path} keeps no keys and values from which it could go on writing; set calibration.generated=0"
            )
        if step == 0:
            make_room(cache, piece)
        latest = _drawn(found.logits[:, -1], draws[batch][:, step].to(device))
        written[-1].append(latest)
    tokens = torch.cat([torch.cat(batch, dim=1) for batch in written])
    return tokens.flatten()[: count * length].view(count, length).cpu()


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """The tokens `[pieces, 1]` at which the predictions' sums `[pieces, vocabulary]` pass `draws` `[pieces]` in 0 to 1."""
    sums = logits.double().softmax(-1).cumsum(-1)
    found = torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)
    return found.clamp_(max=logits.shape[-1] - 1)


def _openings(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Tokens that the tokenizer puts before any text, and all that may follow: its vocabulary without special ones."""
    tokenizer: Any = checkpoint.tokenizer
    special = set(tokenizer.all_special_ids)
    special |= {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    begin: list[int] = []
    for token in tokenizer("a", verbose=False)["input_ids"]:
        if token not in special:
            break
        begin.append(token)
    rows = min(len(tokenizer), embedding_entry(checkpoint).shape[0])
    words = [token for token in range(rows) if token not in special]
    return torch.tensor(begin, dtype=torch.int64), torch.tensor(words, dtype=torch.int64)


def _piece_bytes(checkpoint: Checkpoint, room: Room) -> int:
    """What a piece takes beside the model: keys and values of all blocks, from above, and predictions of its next token."""
    vocabulary, hidden = embedding_entry(checkpoint).shape
    size = calibration_dtype(room.device, checkpoint.config.hidden_size).itemsize
    kept = 2 * checkpoint.blocks * hidden * PIECE * size
    return kept + _LOGITS * 8 * vocabulary
