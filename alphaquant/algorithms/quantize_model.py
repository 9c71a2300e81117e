"""Quantize a model block by block: each block sees the inputs that the quantized blocks before it make."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from alphaquant.algorithms.block_order import Observe
from alphaquant.algorithms.memory_plan import MemoryPlan, busy, memory_within
from alphaquant.algorithms.quantized_block import save_block, solved_weights
from alphaquant.algorithms.solve_block import SolvedBlock, solve_block
from alphaquant.algorithms.solve_head import solve_head
from alphaquant.algorithms.walk_model import ModelWalk
from alphaquant.clock import note_work, timed
from alphaquant.config import UNCALIBRATED, QuantizationConfig
from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import calibration_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.models.read_ahead import read_ahead
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter
from alphaquant.resident import give_back, give_back_much


class BlockCache(Protocol):
    """Finished blocks. A block's key covers everything before it, so a hit is safe to build on."""

    def get(self, index: int, ingredients: Any) -> Path | None:
        """The folder of block `index` if it was made from the same `ingredients`."""

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        """Keep what `write` puts into a folder; returns where it lies."""


class FreshBlocks:
    """A cache that finds nothing: every block is computed and kept in a folder under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, index: int, ingredients: Any) -> Path | None:
        """Never there."""
        return None

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        """Keep a block for as long as its folder is kept."""
        folder = self._root / str(index)
        folder.mkdir()
        write(folder)
        return folder


def quantize_blocks(
    checkpoint: Checkpoint,
    plan: QuantPlan,
    tokens: Tensor | None,  # [windows, length]
    config: QuantizationConfig,
    *,
    device: torch.device,
    batch_size: int,
    blocks: BlockCache,
    dtype: torch.dtype | None = None,
    memory_limit: int | None = None,
    scratch: Path | None = None,
) -> list[Path]:
    """Quantize every block by the plan; returns one folder per block, in order, and behind them the head's
    where the plan has a format for it.

    Hidden states are handed on in memory. Where finished blocks are found, they are recomputed from
    those, only when a later block needs them. Methods rtn and nf4 work without `tokens`; their output
    errors are then those on white inputs. The process stays below `memory_limit` bytes, with files in `scratch`; raises
    ConfigError where it cannot.
    """
    if tokens is None and config.method not in UNCALIBRATED:
        raise ValueError(f"method {config.method} needs calibration tokens")
    if tokens is None and config.tune != "none":
        raise ValueError("tuning needs calibration tokens")
    computed = dtype or calibration_dtype(device, checkpoint.config.hidden_size)
    memory = MemoryPlan.on(device, batch_size, config.method)
    if memory_limit is not None:
        memory = memory_within(memory_limit, checkpoint, tokens, config, memory, device, computed)
    elif tokens is not None:
        memory = busy(memory, checkpoint, tokens.shape[1], device, computed)
    walker = ModelWalk(checkpoint, tokens, device, computed, memory, config, scratch)
    solve = partial(_solve, walker, checkpoint, plan, config, device, memory)
    folders: list[Path] = []
    head = next((spec for spec in plan.quantized if spec.role == "lm_head"), None)
    units = checkpoint.blocks + (head is not None)
    written: Future[Path] | None = None  # the block before, if it is being written still
    with ThreadPoolExecutor(1) as writer:
        for index in range(checkpoint.blocks):
            reporter().update("block", index, units)
            specs = _quantized(plan, checkpoint.block_specs(index))
            ingredients = {spec.name: str(plan.schemes[spec.name]) for spec in specs}
            early: SolvedBlock | None = None
            if written:
                try:
                    early = solve(index, folders) if walker.stands_before(index) else None
                except Exception:
                    _folder(written)  # what went wrong there went wrong first
                    raise
                folders.append(_folder(written))
                written = None
            folder = blocks.get(index, ingredients)
            if folder is None:
                block = early or solve(index, folders)
                put = partial(blocks.put, index, ingredients, partial(save_block, block=block))
                written = writer.submit(contextvars.copy_context().run, put)
                del put
                if index + 1 < units:
                    walker.pass_on(index, solved_weights(checkpoint, index, block, device))
                del block, early  # or two blocks would be in memory while the next one is solved
                if _writes_behind(device, memory_limit):
                    continue
                folder = _folder(written)
                written = None
                give_back()
            folders.append(folder)
        if written:
            folders.append(_folder(written))
    if head is not None:
        reporter().update("block", checkpoint.blocks, units)
        scheme = plan.schemes[head.name]
        ingredients = {head.name: str(scheme)}
        folder = blocks.get(checkpoint.blocks, ingredients)
        if folder is None:
            reached = walker.observe_head(head, folders)
            part = memory.weights_at_once(head)
            solved_head = solve_head(checkpoint, head, scheme, reached, device, config, part)
            with timed("write"):
                folder = blocks.put(
                    checkpoint.blocks, ingredients, partial(save_block, block=solved_head)
                )
        folders.append(folder)
    reporter().update("block", units, units)
    return folders


def _solve(
    walker: ModelWalk,
    checkpoint: Checkpoint,
    plan: QuantPlan,
    config: QuantizationConfig,
    device: torch.device,
    memory: MemoryPlan,
    index: int,
    folders: Sequence[Path],
) -> SolvedBlock:
    """Look at block `index` behind the finished ones in `folders`, and quantize it."""
    every = checkpoint.block_specs(index)
    solved = _looked_at(plan, every)
    kept = [spec.name for spec in every if plan.schemes[spec.name].format == "bf16"]
    in_order = walker.calibrated and config.in_order and bool(solved)
    observed: Mapping[str, HessianAccumulator] | Observe = {}
    if in_order and not config.corrects:
        observed = walker.observer(index, kept, folders)
    elif not in_order:
        observed = walker.observe(index, solved, folders)
    give_back_much()
    if index + 1 < checkpoint.blocks:
        read_ahead(checkpoint, index + 1)
    lesson = None
    if solved and (config.tune != "none" or config.corrects):
        ahead = config.tune_ahead and config.tune != "none"
        lesson = walker.lesson(index, folders, kept, ahead=ahead)
        observed = lesson.observe or observed
    block = solve_block(checkpoint, solved, plan, observed, device, config, lesson, memory.at_once)
    note_work(partial(walker.work, index, every, plan, config))
    walker.forget()
    return block


def _quantized(plan: QuantPlan, specs: Sequence[LinearSpec]) -> list[LinearSpec]:
    """Those that the plan does not keep."""
    return [spec for spec in specs if plan.schemes[spec.name].format != "bf16"]


def _looked_at(plan: QuantPlan, every: Sequence[LinearSpec]) -> list[LinearSpec]:
    """Those of a block's linears whose inputs matter."""
    specs = _quantized(plan, every)
    if any(spec.expert is not None for spec in specs):
        # kept experts count in the mean that the others are shrunk towards
        return [s for s in every if s in specs or s.expert is not None]
    return specs


def _writes_behind(device: torch.device, memory_limit: int | None) -> bool:
    """Whether a block is written while the next one is solved, with both in memory: a GPU would wait for the file otherwise.

    It is in vain where that block is found finished: where this one was lost, or where another process is at the same blocks.
    """
    return device.type == "cuda" and memory_limit is None


@timed("write")
def _folder(written: Future[Path]) -> Path:
    """Where a block is, once it is there."""
    return written.result()
