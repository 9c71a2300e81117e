"""What running a model takes of memory, as formulas: a window's activations, a block, the embedding or the head.

All sizes are bytes; a number that is computed with has `itemsize` of them (4 on a CPU, 2 on a GPU).
"""

from __future__ import annotations

import math

import torch

from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.shard import DTYPES
from alphaquant.models.skeleton import skeleton_of
from alphaquant.models.tensors import TensorEntry


def window_bytes(checkpoint: Checkpoint, length: int, itemsize: int, *, experts: int = 1) -> int:
    """Activations of a window of `length` tokens in a block, from above.

    2 * (4 * length * (8 * hidden + 4 * widest * experts) + 8 * length * widest), the widest side of a linear: norms and
    Hessians widen them to fp32, and as much again is freed and not yet returned. Attention that keeps its scores has
    2 * heads * length² numbers more. `experts` of a token are there at one time: one where experts run one by one.
    """
    hidden = embedding_entry(checkpoint).shape[1]
    blocks = [spec for spec in checkpoint.specs if spec.block is not None]
    widest = max(max(spec.rows, spec.cols) for spec in blocks)
    activations = 2 * length * (4 * (8 * hidden + 4 * widest * experts) + 8 * widest)
    # the class decides where config.json does not
    if skeleton_of(checkpoint, torch.float32).config._attn_implementation != "eager":
        return activations
    return activations + 2 * itemsize * int(checkpoint.config.num_attention_heads) * length**2


def routed_experts(checkpoint: Checkpoint) -> int:
    """Experts that a token is sent to; 1 for a dense model."""
    return int(checkpoint.raw_config.get("num_experts_per_tok") or 1)


def block_bytes(checkpoint: Checkpoint, itemsize: int, *, narrow: bool = False) -> int:
    """The largest block while it runs; a `narrow` one keeps its linears in the 16 bits of the file."""
    linears = {f"{spec.name}.weight" for spec in checkpoint.specs} if narrow else set()
    held = [0] * checkpoint.blocks
    prefix = f"{checkpoint.architecture.blocks}."
    for name, entry in checkpoint.entries.items():
        number = name.removeprefix(prefix).partition(".")[0]
        if name.startswith(prefix) and number.isdecimal() and int(number) < len(held):
            each = min(max(_stored(entry, itemsize), 2), itemsize) if name in linears else itemsize
            held[int(number)] += each * math.prod(entry.shape)
    return max(held)


def table_bytes(checkpoint: Checkpoint, itemsize: int) -> int:
    """The embedding as it is computed with; the head is as large."""
    return itemsize * math.prod(embedding_entry(checkpoint).shape)


def stored_table_bytes(checkpoint: Checkpoint, itemsize: int) -> int:
    """What the embedding takes besides while it is read: the file's form of it, and a byte a number to look for NaN."""
    stored = _stored(embedding_entry(checkpoint), itemsize)
    each = 1 + (0 if stored == itemsize else stored)
    return each * math.prod(embedding_entry(checkpoint).shape)


def embedding_entry(checkpoint: Checkpoint) -> TensorEntry:
    """The embedding on disk, `[vocabulary, hidden]`."""
    return checkpoint.entries[f"{checkpoint.architecture.embedding}.weight"]


def _stored(entry: TensorEntry, itemsize: int) -> int:
    return DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else itemsize
