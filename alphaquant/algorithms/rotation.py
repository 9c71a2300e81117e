"""Rotation inside the weights: a model that computes the same in a basis without outlier channels.

The residual stream is turned by one orthogonal matrix Q, the values of each block's heads by another one
(QuaRot, arXiv 2404.00456, and the R1 and R2 of SpinQuant, arXiv 2405.16406). RMSNorm weights go into the
linears behind them first. Embeddings are never centred: RMSNorm would notice. All of it is done in fp64,
tensor by tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.config import RotationConfig
from alphaquant.linalg.hadamard import Rotation
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.linear import HEAD, LinearSpec
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.rotatable import HEAD_WEIGHT, Basis, Turn, head_block, heads, turns
from alphaquant.models.tensors import TensorEntry
from alphaquant.models.untied import untied_config
from alphaquant.progress import track

_PEAK_GROUP = 128
_NARROW = ("F8_", "torch.float8")


class RotatedCheckpoint(Checkpoint):
    """A checkpoint seen in the turned basis; each tensor is turned when it is read.

    Tensors keep their stored dtype, so that files and forward passes are as large and fast as before;
    only 8-bit floats, whose grid the turned values would miss, become bf16. `dtype` is for whoever wants
    another. A tied model comes out untied: its head takes the final norm in, its embedding does not.
    Raises ModelError for a model that a rotation would change.
    """

    def __init__(
        self, source: Checkpoint, config: RotationConfig, dtype: torch.dtype | None = None
    ) -> None:
        self.path = source.path
        self.trust_remote_code = source.trust_remote_code
        self.architecture = source.architecture
        self.raw_config = source.raw_config | {"tie_word_embeddings": False}
        self.blocks = source.blocks
        self._source, self._dtype = source, dtype
        shapes = {name: entry.shape for name, entry in source.entries.items()}
        self.turns = turns(
            self.architecture,
            source.raw_config,
            shapes,
            source.specs,
            config,
            trust_remote_code=source.trust_remote_code,
        )
        """What becomes of each tensor that changes."""
        self.entries = _entries(source, source.entries, self.turns)
        self.layout = replace(
            source.layout, files=_entries(source, source.layout.files, self.turns)
        )
        self.specs: list[LinearSpec] = self.architecture.linears(
            self.raw_config, {name: entry.shape for name, entry in self.entries.items()}
        )
        hidden = shapes[f"{self.architecture.embedding}.weight"][1]
        self.residual = Rotation(hidden, block=config.block, seed=config.seed)
        """Q."""
        self._block = config.block
        self._seed = config.seed
        self._heads = heads(self.architecture, source.raw_config, source.specs, config)

    @property
    def turns_heads(self) -> bool:
        """Whether the values inside each head are turned too."""
        return self._heads.turned

    @functools.cached_property
    def config(self) -> Any:
        """The transformers config of the untied model."""
        return untied_config(self._source)

    @timed("rotation")
    def tensor(self, name: str) -> Tensor:
        """One tensor as the turned model has it, on the CPU; in its stored dtype unless told otherwise."""
        turn = self.turns.get(name)
        if turn is None:
            return self._source.tensor(name)
        stored = self._source.head_weight() if name == HEAD_WEIGHT else self._source.tensor(name)
        stored = finite(stored, name).cpu()
        dtype = self.dtype(name)
        offset = self.architecture.norm_offset
        if turn.ones:
            return torch.full_like(stored, 1 - offset, dtype=dtype)
        norm = None
        if turn.norm:
            norm = finite(self._source.tensor(turn.norm), turn.norm).cpu()
            norm = norm.double() + offset if offset else norm
        turned = stored
        if turn.inputs:
            wide = torch.float64 if turn.outputs else dtype
            turned = self._rotation(turn.inputs, name).apply(stored, norm, dtype=wide)
        if turn.outputs:
            rows = turned.shape[0] if turn.rows is None else turn.rows
            kept, changed = turned[: turned.shape[0] - rows], turned[turned.shape[0] - rows :]
            changed = self._rotation(turn.outputs, name).apply_left(changed, dtype=dtype)
            turned = torch.cat([kept.to(dtype), changed]) if rows < turned.shape[0] else changed
        return turned

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `tensor` gives one in, without turning it."""
        embedding = f"{self.architecture.embedding}.weight"
        stored = self._source.dtype(name if name in self._source.entries else embedding)
        if name not in self.turns:
            return stored
        return self._dtype or (torch.bfloat16 if stored.itemsize == 1 else stored)

    def _rotation(self, basis: Basis, name: str) -> Rotation:
        if basis == "residual":
            return self.residual
        block = int(name.removeprefix(f"{self.architecture.blocks}.").partition(".")[0])
        return self._head_rotation(block)

    def _head_rotation(self, block: int) -> Rotation:
        """One rotation for all heads of a block, so that heads which share their values agree."""
        width = self._heads.width
        size = head_block(width, self._block)
        return Rotation(width, block=size, seed=self._seed, index=block + 1)


def best_seed(source: Checkpoint, config: RotationConfig) -> RotationConfig:
    """The config with the seed whose rotation leaves the smallest `peak_ratio`, of `config.candidates` many."""
    if config.candidates == 1:
        return config
    tried = [config.model_copy(update={"seed": config.seed + i}) for i in range(config.candidates)]
    peaks = [
        peak_ratio(RotatedCheckpoint(source, candidate))
        for candidate in track(tried, "rotation seed", len(tried))
    ]
    return tried[peaks.index(min(peaks))]


@timed("rotation")
def peak_ratio(checkpoint: Checkpoint, group: int = _PEAK_GROUP) -> float:
    """Largest weight of a group against the root mean square weight, over the decoder's linears.

    A group's scale, and with it rounding noise, follows its largest weight. Gaussian weights have 2.85 in
    groups of 128; what lies above is what a rotation can take away.
    """
    energies = []
    for spec in checkpoint.specs:
        if spec.block is None or spec.role == "router":
            continue
        weight = checkpoint.weight(spec.name).float()
        peaks = torch.cat([part.abs().amax(-1) for part in weight.split(group, -1)])
        energies.append(float(peaks.square().mean() / weight.square().mean()))
    return math.sqrt(sum(energies) / len(energies))


@torch.no_grad()
def rotate_model(model: nn.Module, config: RotationConfig, model_type: str = "auto") -> None:
    """Turn a transformers model in memory, in place. Raises ModelError before anything has changed."""
    live = LiveCheckpoint(model, model_type)
    rotated = RotatedCheckpoint(live, best_seed(live, config))
    head = rotated.tensor(
        HEAD_WEIGHT
    )  # of a tied model it comes from the embedding, which changes below
    # norms are read by the linears behind them, so they change last
    for name in sorted(rotated.turns, key=lambda name: rotated.turns[name].ones):
        if name in live.entries and name != HEAD_WEIGHT:
            live.tensor(name).copy_(rotated.tensor(name))
    live.replace(HEAD, head)


def _entries(
    source: Checkpoint, known: Mapping[str, TensorEntry], changed: Mapping[str, Turn]
) -> dict[str, TensorEntry]:
    """Known entries with a head of its own, in the file of the embedding or where it was."""
    entries = {
        name: replace(entry, dtype="BF16")
        if name in changed and entry.dtype.startswith(_NARROW)
        else entry
        for name, entry in known.items()
    }
    embedding = entries[f"{source.architecture.embedding}.weight"]
    return {HEAD_WEIGHT: embedding} | entries if HEAD_WEIGHT not in entries else entries
