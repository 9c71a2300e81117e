"""How a model is quantized inside a memory limit: what is held at once, and what is split where it is too much.

Watching a block takes weights, activations, Hessians, hidden states and codes of what is solved already; solving it takes Hessians,
codes, hidden states and solving; going on behind it weights, activations, codes and hidden states. Hidden states go to a file first,
then Hessians: those of a block are then gathered in as many passes as it takes and read again as they are solved. Neither changes a bit
of the result, nor does the number of experts that are solved at once. Fewer windows per forward pass come last: they change the order
of sums, as `execution.batch_size` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alphaquant.algorithms.memory_needs import (
    CODES,
    SOLVING,
    STORED,
    Needs,
    hessian_bytes,
    needs_of,
    sharing,
    solving_bytes,
)
from alphaquant.algorithms.stacks import PART
from alphaquant.config import Method, QuantizationConfig
from alphaquant.errors import ConfigError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import calibration_dtype, compute_dtype, free_memory, room_for
from alphaquant.models.footprint import window_bytes
from alphaquant.models.linear import LinearSpec
from alphaquant.models.skeleton import skeleton_of
from alphaquant.progress import reporter
from alphaquant.sizes import size_text

_HIDDEN = 8
"""One part in so many is for hidden states; larger ones wait in a file, where reading them costs next to nothing."""
_CACHED = 1 << 20
_TIMES = 8
"""As many windows as are asked for, in passes of a GPU that keep nothing."""
_FEW = 4
"""Experts that should be solved at once before Hessians go to a file."""


@dataclass(frozen=True)
class MemoryPlan:
    """What is held at once."""

    batch_size: int
    """Windows per forward pass."""
    hidden_on_disk: bool = False
    hessians_on_disk: bool = False
    hessians: float = math.inf
    """Bytes of Hessians that are gathered in one pass."""
    solving: float = math.inf
    """Bytes for solving."""
    method: Method = "gptq"
    weights: float = math.inf
    """Weights that are solved together, unless those of one expert are more."""
    asked: int | None = None
    """Windows per pass that were asked for, where `batch_size` is more."""
    limited: bool = False
    """Whether there is a limit: shortcuts through a block wait in a file, and blocks are not held while linears are solved."""

    @classmethod
    def on(cls, device: torch.device, batch_size: int, method: Method) -> MemoryPlan:
        """Everything at once, but on a CPU no more weights than its cache serves: more take as long, and memory."""
        weights = _CACHED if device.type == "cpu" else math.inf
        return cls(batch_size, method=method, weights=weights)

    @property
    def taught_at_once(self) -> int:
        """Windows per pass with gradients, or that keeps all that its linears read."""
        return self.asked or self.batch_size

    def passes(self, specs: Sequence[LinearSpec]) -> Iterator[list[LinearSpec]]:
        """The linears of a block by the pass in which their inputs are looked at."""
        group: list[LinearSpec] = []
        held = 0
        for readers in sharing(specs):
            size = hessian_bytes(readers[0])
            if group and held + size > self.hessians:
                yield group
                group, held = [], 0
            group.extend(readers)
            held += size
        if group:
            yield group

    def at_once(self, readers: Sequence[LinearSpec]) -> int:
        """How many experts are solved together, of each of which `readers` read the same inputs."""
        most = min(
            self.solving / solving_bytes(readers, self.method),
            PART / hessian_bytes(readers[0]),
            self.weights / sum(spec.size for spec in readers),
        )
        return max(1, int(most))

    def beside_shortcuts(self, needs: Needs, block: Sequence[LinearSpec]) -> int:
        """Bytes that looking at a block and solving it take besides, of a model that `needs` so much."""
        groups = list(sharing(block))
        kinds = [tuple((spec.role, spec.rows, spec.cols) for spec in one) for one in groups]
        alike = Counter(kinds)
        solving = max(
            min(self.at_once(one), alike[kind]) * solving_bytes(one, self.method)
            for one, kind in zip(groups, kinds, strict=True)
        )
        watching = needs.weights + self.batch_size * needs.window
        return max(solving, watching) + needs.hessians + needs.codes + needs.lesson

    def weights_at_once(self, head: LinearSpec) -> float:
        """How many weights of a head are solved together, beside its stored form and its codes; none are less than a row."""
        copies, hessians = SOLVING[self.method]
        beside = (STORED + CODES) * head.size + hessians * hessian_bytes(head)
        return max(self.solving - beside, 0) / (4 * copies)

    def described(self, blocks: Sequence[Sequence[LinearSpec]]) -> str:
        """What was split, for people; `blocks` are the linears of each."""
        passes = [part for specs in blocks for part in self.passes(specs)]
        held = max(sum(hessian_bytes(one[0]) for one in sharing(part)) for part in passes)
        experts = [
            readers
            for specs in blocks
            for readers in sharing(specs)
            if readers[0].expert is not None
        ]
        parts = [
            f"batches of {self.batch_size} windows",
            f"hidden states {'in a file' if self.hidden_on_disk else 'in memory'}",
            f"up to {size_text(held)} of Hessians at a time"
            + (" and in a file" if self.hessians_on_disk else ""),
        ]
        if experts:
            number = 1 + max(spec.expert or 0 for readers in experts for spec in readers)
            parts.append(f"{min(number, *map(self.at_once, experts))} experts solved at once")
        return ", ".join(parts)


def busy(
    plan: MemoryPlan,
    checkpoint: Checkpoint,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> MemoryPlan:
    """`plan`, on a GPU with up to eight times as many windows of `length` in a pass, where half of the free memory holds them.

    A pass over a mixture of experts is thousands of calls, whatever the number of windows, and a GPU is through with
    the work of eight windows before the next call comes.
    """
    free = free_memory(device) if device.type == "cuda" else None
    if free is None:
        return plan
    times, window = _TIMES, window_bytes(checkpoint, length, dtype.itemsize)
    while times > 1 and times * plan.batch_size * window > free // 2:
        times //= 2
    return replace(plan, batch_size=times * plan.batch_size, asked=plan.batch_size)


def memory_within(
    limit: int,
    checkpoint: Checkpoint,
    tokens: Tensor | None,  # [windows, length]
    config: QuantizationConfig,
    whole: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    backward: int = 0,
) -> MemoryPlan:
    """`whole`, split so that the process stays below `limit` bytes, with a `backward` pass over so many windows; says how.

    Raises ConfigError where not even the smallest split fits.
    """
    shape = (0, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])
    needs, room = needs_and_room(limit, checkpoint, shape, config, device, dtype, backward)
    chosen = plan_memory(needs, room, replace(whole, limited=True))
    blocks = [checkpoint.block_specs(index) for index in range(checkpoint.blocks)]
    reporter().note(
        f"memory limit {size_text(limit)}, {size_text(room)} of it for work: {chosen.described(blocks)}"
    )
    return chosen


def needs_and_room(
    limit: int,
    checkpoint: Checkpoint,
    shape: tuple[int, int],
    config: QuantizationConfig,
    device: torch.device,
    dtype: torch.dtype,
    backward: int = 0,
) -> tuple[Needs, int]:
    """What quantizing takes with calibration windows of a `shape` (windows, length), and the bytes there are for it.

    The sensitivity's `backward` pass sees so many of the windows.

    Raises ConfigError where not even the smallest split fits below `limit`.
    """
    skeleton_of(checkpoint, dtype)  # the code that transformers loads for it takes memory too
    needs = needs_of(checkpoint, *shape, config, dtype.itemsize, backward)
    room = room_for(limit, device)
    require_room(needs, room, limit)
    return needs, room


def least_for(
    limit: int | None,
    checkpoint: Checkpoint,
    tokens: Tensor,  # [windows, length]
    configs: Sequence[QuantizationConfig],
    device: torch.device,
) -> int:
    """Bytes to leave for quantizing by any of these configs below a `limit`; without one, none are asked for."""
    if limit is None:
        return 0
    size = calibration_dtype(device, checkpoint.config.hidden_size).itemsize
    windows, length = tokens.shape
    return max(needs_of(checkpoint, windows, length, c, size).least() for c in configs)


def plan_memory(needs: Needs, room: int, plan: MemoryPlan) -> MemoryPlan:
    """Split until everything fits into `room` bytes; `plan` says what would be held if all did.

    Where not even the smallest split fits, that one is returned; `require_room` is for refusing it.
    """
    chosen = plan
    in_memory = needs.hidden
    if in_memory > room // _HIDDEN or in_memory + needs.least() > room:
        chosen, in_memory = replace(chosen, hidden_on_disk=True), 0
    batch = chosen.batch_size
    beside = needs.weights + max(needs.hessian + needs.solved, needs.codes) + in_memory
    behind = needs.weights + needs.gradients + in_memory
    while batch > 1 and (
        beside + batch * needs.window > room or behind + batch * needs.backward > room
    ):
        batch //= 2
    gathered = room - in_memory - needs.weights - batch * needs.window - needs.solved
    solving = room - in_memory - needs.codes - needs.lesson - needs.hessians
    fits = gathered >= needs.hessians and solving >= _FEW * needs.solving
    return replace(
        chosen,
        batch_size=batch,
        hessians=max(gathered, 0),
        hessians_on_disk=not fits,
        solving=max(solving if fits else solving + needs.hessians, 0),
    )


def require_room(needs: Needs, room: int, limit: int) -> None:
    """Raise ConfigError where not even the smallest split fits."""
    if (least := needs.least()) > room:
        held = limit - room
        raise ConfigError(
            f"execution.memory_limit is {size_text(limit)}, and this model's blocks need {size_text(least + held, least=True)}: "
            f"{size_text(held)} for what is there already, {size_text(needs.weights)} for the largest block, "
            f"{size_text(max(needs.window, needs.backward))} for a window, {size_text(needs.hessian)} for a Hessian, "
            f"{size_text(needs.codes)} for codes, "
            f"{size_text(needs.solving)} to solve a linear, {size_text(max(needs.embedding, needs.head))} for the embedding or head. "
            "Raise the limit, or lower calibration.sequence_length."
        )


def require_whole(setting: str, checkpoint: Checkpoint, limit: int, device: torch.device) -> None:
    """Raise ConfigError where a `setting` that needs the whole model does not fit below the limit."""
    needed = checkpoint.whole_bytes(compute_dtype(device))
    if needed > (room := room_for(limit, device)):
        raise ConfigError(
            f"{setting} holds the whole model, {size_text(needed, least=True)}, and execution.memory_limit leaves {size_text(max(room, 0))} "
            "for it. Raise the limit, or take a method that goes block by block (quantization.tune=block, "
            "router.method=align or block)."
        )
