"""What quantizing takes of memory, as formulas: the sizes that `memory_plan` fits into a limit.

All sizes are bytes. With t tokens per batch, weights [out, in] and numbers of c bytes (4 on a CPU, 2 on a GPU):

weights     one block, its linears in the 16 bits of the file, all else in c, and its largest linear once more in fp32
activations as `models.footprint.window_bytes` has them
Hessians    4 * in² for every input that linears of the block read
solving     of all linears of an input, which are solved together, SOLVING[method]: so many fp32 copies of weights and Hessian
codes       one byte a weight and 4 a group, of one block
hidden      c * windows * length * hidden, between blocks
embedding   vocabulary * hidden in c and as stored, while the first hidden states are made; nothing of it stays
lesson      with tuning 4 times hidden, TUNING a weight of a block, and Hessians once more; with correction 3 times hidden, CORRECTING a
            weight, two fp32 copies of what joins the stream, Hessians four times more (their own, those of half the windows, and
            halves of what inputs have lost), and PLACES times hidden of the original, of two blocks where the next one judges a tuned one
backward    of sensitivity: activations of all experts that a token is sent to, and gradients as large as the hidden states
            that it sees; at its beginning the head in c, and LOGITS fp32 copies of length * vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alphaquant.config import Method, QuantizationConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.footprint import (
    block_bytes,
    embedding_entry,
    routed_experts,
    stored_table_bytes,
    table_bytes,
    window_bytes,
)
from alphaquant.models.joins import WRITERS
from alphaquant.models.linear import LinearSpec

SOLVING: dict[Method, tuple[int, int]] = {
    "gptq": (17, 4),
    "adaround": (46, 4),
    "awq": (19, 4),
    "nf4": (17, 4),
    "rtn": (17, 4),
}
"""Copies of the weight and of the Hessian, measured from outside on stacks of one to twelve."""
TUNING, CORRECTING = 44, 8
"""Bytes a weight: tuning holds what was rounded, latents, their gradients and moments, values and their gradients, and the
block that runs in fp32; correction that block and what was rounded."""
PLACES = 5
"""Tensors as wide as the stream in which blocks are compared, at most: what q, k and v read, what o joins, what gate and up
read, what down joins where a norm stands behind it, and latents, which together are narrower."""
STORED, CODES = 2, 1.25
"""Bytes a weight in the file, and as a code with scales of groups of 16, the smallest ones."""
LOGITS = 5
"""Copies of a window's logits while labels are drawn and their gradient is taken; measured 3, and 4 where they are capped."""


@dataclass(frozen=True)
class Needs:
    """Bytes of the largest block, by what they are for."""

    weights: int
    window: int
    """Activations of one window."""
    hidden: int
    hessians: int
    hessian: int
    """The largest one."""
    codes: int
    solving: int
    """Of the linears of one input that take the most."""
    solved: int = 0
    """Codes that are there while the rest of their block is looked at."""
    lesson: int = 0
    """What tuning or correction keeps besides until a block is done."""
    embedding: int = 0
    """With the file's form of it."""
    backward: int = 0
    """Activations of one window in a backward pass."""
    gradients: int = 0
    """Between the blocks of a backward pass."""
    head: int = 0
    """Where a backward pass begins, gradients included."""

    def least(self) -> int:
        """What the smallest split takes: one window, one Hessian, one linear, everything else in files."""
        solving = self.solving + self.codes + self.lesson
        return max(
            self.weights + self.window + max(self.hessian + self.solved, self.codes),
            solving,
            self.embedding + self.window,
            self.weights + self.gradients + self.backward,
            self.head,
        )


def needs_of(
    checkpoint: Checkpoint,
    windows: int,
    length: int,
    config: QuantizationConfig,
    itemsize: int,
    backward: int = 0,
) -> Needs:
    """The needs of a model's largest block for calibration on `windows` of `length` tokens (none without tokens).

    A backward pass over so many of them comes behind it.
    """
    specs = [s for s in checkpoint.specs if s.block is not None]
    blocks = [[s for s in specs if s.block == at] for at in range(checkpoint.blocks)]
    inputs = [{spec.input_key: hessian_bytes(spec) for spec in block} for block in blocks]
    vocabulary, hidden = embedding_entry(checkpoint).shape
    if not windows:  # no block is run, and its inputs are taken for white
        inputs = [{} for _ in blocks]
    states = windows * length * hidden * itemsize
    hessians = max(sum(sizes.values()) for sizes in inputs)
    largest = max(sum(spec.size for spec in block) for block in blocks)
    table, stored = table_bytes(checkpoint, itemsize), stored_table_bytes(checkpoint, itemsize)
    gradients = backward * length * hidden * itemsize
    lesson = 0
    if config.tune != "none":
        lesson = 4 * states + max(TUNING * largest, table + stored) + hessians
    elif config.corrects:
        lesson = 3 * states + max(CORRECTING * largest, table + stored)
    if config.corrects:
        blocks_compared = 2 if config.tune != "none" and config.tune_ahead else 1
        joining = max(sum(s.size for s in block if s.role in WRITERS) for block in blocks)
        lesson += PLACES * blocks_compared * states + 8 * joining + 4 * hessians
    codes = max(sum(_codes(spec) for spec in block) for block in blocks)
    weights = block_bytes(checkpoint, itemsize, narrow=True) + 8 * max(s.size for s in specs)
    return Needs(
        weights=weights if windows else 0,
        window=window_bytes(checkpoint, length, itemsize),
        hidden=states,
        hessians=hessians,
        hessian=max(max(sizes.values(), default=0) for sizes in inputs),
        codes=codes,
        solved=codes if config.in_order and windows and not backward else 0,
        solving=max(
            solving_bytes(readers, config.method) for block in blocks for readers in sharing(block)
        ),
        lesson=lesson,
        embedding=table + stored if windows else 0,
        backward=window_bytes(checkpoint, length, itemsize, experts=routed_experts(checkpoint))
        if backward
        else 0,
        gradients=gradients,
        head=gradients + table + max(stored, LOGITS * 4 * length * vocabulary) if backward else 0,
    )


def solving_bytes(readers: Sequence[LinearSpec], method: Method) -> int:
    """What solving linears takes that read the same inputs: they are solved as one matrix."""
    weights, hessians = SOLVING[method]
    return 4 * weights * sum(spec.size for spec in readers) + hessians * hessian_bytes(readers[0])


def sharing(block: Sequence[LinearSpec]) -> Iterable[Sequence[LinearSpec]]:
    """The linears of a block by what they read."""
    found: dict[str, list[LinearSpec]] = {}
    for spec in block:
        found.setdefault(spec.input_key, []).append(spec)
    return found.values()


def hessian_bytes(spec: LinearSpec) -> int:
    """Of what a linear reads."""
    return 4 * spec.cols**2


def _codes(spec: LinearSpec) -> int:
    return int(CODES * spec.size)
