"""What quantizing takes of memory, as formulas: the sizes that `memory_plan` fits into a limit.

All sizes are bytes. With t tokens per batch, weights [out, in] and numbers of c bytes (4 on a CPU, 2 on a GPU):

weights     one block, its linears in the 16 bits of the file, all else in c, and its largest linear once more in fp32
activations 2 * (4 * t * (8 * hidden + 4 * widest) + 8 * t * widest), the widest side of a linear: norms and Hessians widen
            them to fp32, and as much again is freed and not yet returned; with attention that keeps its scores also
            2c * windows * heads * length²
Hessians    4 * in² for every input that linears of the block read
solving     of all linears of an input, which are solved together, SOLVING[method]: so many fp32 copies of weights and Hessian
codes       one byte a weight and 4 a group, of one block
hidden      c * windows * length * hidden, between blocks
lesson      with tuning 4 times hidden, TUNING a weight of a block, and Hessians once more; with correction 3 times hidden, and twice Hessians and
            CORRECTING a weight
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alphaquant.config import Method, QuantizationConfig
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.shard import DTYPES

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
block that runs in fp32; correction the weight and what was rounded, of either solution."""


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
    lesson: int = 0
    """What tuning or correction keeps besides until a block is done."""

    def least(self) -> int:
        """What the smallest split takes: one window, one Hessian, one linear, everything else in files."""
        solving = self.solving + self.codes + self.lesson
        return max(self.weights + self.window + max(self.hessian, self.codes), solving)


def needs_of(
    checkpoint: Checkpoint, windows: int, length: int, config: QuantizationConfig, itemsize: int
) -> Needs:
    """The needs of a model's largest block for calibration on `windows` of `length` tokens (none without tokens)."""
    model, specs = checkpoint.config, [s for s in checkpoint.specs if s.block is not None]
    blocks = [[s for s in specs if s.block == at] for at in range(checkpoint.blocks)]
    inputs = [{spec.input_key: hessian_bytes(spec) for spec in block} for block in blocks]
    hidden = int(model.hidden_size)
    widest = max(max(spec.rows, spec.cols) for spec in specs)
    scores = 0
    if getattr(model, "_attn_implementation", None) == "eager":
        scores = 2 * itemsize * int(model.num_attention_heads) * length**2
    if not windows:  # no block is run, and its inputs are taken for white
        inputs = [{} for _ in blocks]
    states = windows * length * hidden * itemsize
    hessians = max(sum(sizes.values()) for sizes in inputs)
    largest = max(sum(spec.size for spec in block) for block in blocks)
    lesson = 0
    if config.tune != "none":
        lesson = 4 * states + TUNING * largest + hessians
    elif config.method == "gptq" and config.correction != "none":
        lesson = 3 * states + 2 * (CORRECTING * largest + hessians)
    weights = _block_bytes(checkpoint, blocks, itemsize) + 8 * max(spec.size for spec in specs)
    return Needs(
        weights=weights if windows else 0,
        window=2 * length * (4 * (8 * hidden + 4 * widest) + 8 * widest) + scores,
        hidden=states,
        hessians=hessians,
        hessian=max(max(sizes.values(), default=0) for sizes in inputs),
        codes=max(sum(_codes(spec) for spec in block) for block in blocks),
        solving=max(
            solving_bytes(readers, config.method) for block in blocks for readers in sharing(block)
        ),
        lesson=lesson,
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
    return spec.size + spec.size // 4  # scales of groups of 16, the smallest ones


def _block_bytes(
    checkpoint: Checkpoint, blocks: Sequence[Sequence[LinearSpec]], itemsize: int
) -> int:
    """Of the largest block while it runs."""
    linears = {f"{spec.name}.weight" for block in blocks for spec in block}
    held = [0] * len(blocks)
    prefix = f"{checkpoint.architecture.blocks}."
    for name, entry in checkpoint.entries.items():
        number = name.removeprefix(prefix).partition(".")[0]
        if name.startswith(prefix) and number.isdecimal() and int(number) < len(held):
            stored = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else itemsize
            each = min(max(stored, 2), itemsize) if name in linears else itemsize
            held[int(number)] += each * math.prod(entry.shape)
    return max(held)
