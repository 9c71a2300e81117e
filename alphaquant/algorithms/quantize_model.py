"""Quantize a model block by block: each block sees the inputs that the quantized blocks before it make."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from alphaquant.algorithms.lesson import Lesson, Sequel, next_block, predictions
from alphaquant.algorithms.quantized_block import block_weights, save_block
from alphaquant.algorithms.solve_block import corrects, solve_block
from alphaquant.algorithms.solve_head import solve_head
from alphaquant.clock import Step, note_work, timed
from alphaquant.config import UNCALIBRATED, QuantizationConfig
from alphaquant.floor import Tokens, quantized_block
from alphaquant.linalg.hessian import HessianAccumulator, white
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, collect_pairs, run_and_collect
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter, unreported
from alphaquant.text.windows import held_out
from alphaquant.work import Work


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
) -> list[Path]:
    """Quantize every block by the plan; returns one folder per block, in order, and behind them the head's
    where the plan has a format for it.

    Hidden states are handed on in memory. Where finished blocks are found, they are recomputed from
    those, only when a later block needs them. Methods rtn and nf4 work without `tokens`; their output
    errors are then those on white inputs.
    """
    if tokens is None and config.method not in UNCALIBRATED:
        raise ValueError(f"method {config.method} needs calibration tokens")
    if tokens is None and config.tune != "none":
        raise ValueError("tuning needs calibration tokens")
    walker = _Walker(
        checkpoint,
        tokens,
        device,
        dtype or compute_dtype(device),
        batch_size,
        config.routing_weight,
    )
    folders: list[Path] = []
    head = next((spec for spec in plan.quantized if spec.role == "lm_head"), None)
    units = checkpoint.blocks + (head is not None)
    for index in range(checkpoint.blocks):
        reporter().update("block", index, units)
        every = checkpoint.block_specs(index)
        specs = [spec for spec in every if plan.schemes[spec.name].format != "bf16"]
        ingredients = {spec.name: str(plan.schemes[spec.name]) for spec in specs}
        folder = blocks.get(index, ingredients)
        if folder is None:
            if any(spec.expert is not None for spec in specs):
                # kept experts count in the mean that the others are shrunk towards
                solved = [s for s in every if s in specs or s.expert is not None]
            else:
                solved = specs
            observed = walker.observe(index, solved, folders)
            taught = specs and (config.tune != "none" or corrects(config))
            ahead = config.tune_ahead and config.tune != "none"
            lesson = walker.lesson(index, every, ahead=ahead) if taught else None
            block = solve_block(checkpoint, solved, plan, observed, device, config, lesson)
            note_work(partial(walker.work, index, every, plan, config))
            with timed("write"):
                folder = blocks.put(index, ingredients, partial(save_block, block=block))
        folders.append(folder)
    if head is not None:
        reporter().update("block", checkpoint.blocks, units)
        scheme = plan.schemes[head.name]
        ingredients = {head.name: str(scheme)}
        folder = blocks.get(checkpoint.blocks, ingredients)
        if folder is None:
            reached = walker.observe_head(head, folders)
            solved_head = solve_head(checkpoint, head, scheme, reached, device, config)
            with timed("write"):
                folder = blocks.put(
                    checkpoint.blocks, ingredients, partial(save_block, block=solved_head)
                )
        folders.append(folder)
    reporter().update("block", units, units)
    return folders


@contextlib.contextmanager
def quantized_for_now(
    checkpoint: Checkpoint,
    plan: QuantPlan,
    tokens: Tensor,  # [windows, length]
    config: QuantizationConfig,
    *,
    device: torch.device,
    batch_size: int,
) -> Iterator[list[Path]]:
    """The blocks' folders while the context is open, for whoever only measures them; progress is not shown."""
    with tempfile.TemporaryDirectory() as folder, unreported():
        yield quantize_blocks(
            checkpoint,
            plan,
            tokens,
            config,
            device=device,
            batch_size=batch_size,
            blocks=FreshBlocks(Path(folder)),
        )


class _Walker:
    """Hidden states of the quantized model, and of the original, advanced only as far as somebody asks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        routing_weight: RoutingWeight,
    ) -> None:
        self._checkpoint, self._tokens = checkpoint, tokens
        self._device, self._dtype, self._batch_size = device, dtype, batch_size
        self._routing_weight: RoutingWeight = routing_weight
        self._model: BlockModel | None = None
        self._hidden: list[Tensor] = []
        self._next = 0
        self._original: dict[int, Tensor] = {}  # by the number of the original's blocks before

    def observe(
        self, index: int, specs: Sequence[LinearSpec], folders: Sequence[Path]
    ) -> Mapping[str, HessianAccumulator]:
        """Hessians of block `index` behind the finished blocks in `folders`, by input key."""
        if not specs:
            return {}
        if self._tokens is None:
            same = {cols: white(cols, self._device) for cols in {spec.cols for spec in specs}}
            return {spec.input_key: same[spec.cols] for spec in specs}
        model = self._advanced(index, folders)
        block = model.block(index)
        return run_and_collect(model, block, index, specs, self._hidden, self._routing_weight)[0]

    def work(
        self,
        index: int,
        every: Sequence[LinearSpec],
        plan: QuantPlan,
        config: QuantizationConfig,
    ) -> Mapping[Step, Work]:
        """What the steps of a block with linears `every` have to do."""
        windows = 0 if self._tokens is None else self._tokens.shape[0]
        count = 0 if self._tokens is None else self._tokens.numel()
        tokens = Tokens.of(self._checkpoint, count, half=self._dtype == torch.bfloat16)
        return quantized_block(
            self._checkpoint, index, every, plan.schemes, tokens, windows, config
        )

    @timed("forward and Hessians")
    def observe_head(self, head: LinearSpec, folders: Sequence[Path]) -> HessianAccumulator:
        """The Hessian of what reaches the head behind the finished blocks in `folders`."""
        if self._tokens is None:
            return white(head.cols, self._device)
        model = self._advanced(self._checkpoint.blocks, folders)
        accumulator = HessianAccumulator(head.cols, self._device)
        with torch.no_grad():
            for batch in self._hidden:
                accumulator.update(model.final_norm(batch.to(self._device)))
        return accumulator

    @timed("forward")
    def _advanced(self, blocks: int, folders: Sequence[Path]) -> BlockModel:
        """The model, with hidden states behind so many of the finished blocks."""
        model = self._opened()
        while self._next < blocks:
            weights = block_weights(self._checkpoint, self._next, folders[self._next])
            block = model.block(self._next, weights)
            self._hidden = list(model.advance(block, self._next, self._hidden))
            self._next += 1
        return model

    def lesson(self, index: int, every: Sequence[LinearSpec], *, ahead: bool) -> Lesson:
        """What reaches block `index`, after `observe`, and what the original's block answers to its own input."""
        model, block = self._opened(), self._opened().block(index)
        before, targets = self._behind(index), self._behind(index + 1)
        routers = [spec for spec in every if spec.role == "router"]
        inputs = torch.cat(self._hidden)
        learnt = max(1, held_out(inputs.shape[0]).start)
        streams = [x[:learnt].split(self._batch_size) for x in (inputs, before)]

        def run(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
            return model.run(block, index, hidden, weights)

        def observe(specs: Sequence[LinearSpec], weights: Mapping[str, Tensor]) -> Any:
            hidden, original = streams
            return collect_pairs(
                model, block, index, specs, routers, weights, hidden, original, self._routing_weight
            )

        last = index + 1 == self._checkpoint.blocks
        sequel: Sequel | None = None
        if ahead and last:
            sequel = predictions(model.final_norm, model.head(), targets)
        elif ahead:
            following = partial(model.run, model.block(index + 1), index + 1)
            sequel = next_block(following, self._behind(index + 2))
        return Lesson(run, inputs, targets, observe, sequel, last, self._batch_size)

    @timed("original's blocks")
    def _behind(self, blocks: int) -> Tensor:
        """The original's hidden states `[windows, length, hidden]` behind its first blocks.

        The last three are kept: what a block gets, what it answers, and what the next one makes of that.
        """
        model, known = self._opened(), self._original
        if not known:
            known[0] = torch.cat(model.embed(cast(Tensor, self._tokens), self._batch_size))
        while (at := max(known)) < blocks:
            batches = list(known[at].split(self._batch_size))
            known[at + 1] = torch.cat(list(model.advance(model.block(at), at, batches)))
            known.pop(at - 2, None)
        return known[blocks]

    @timed("forward")
    def _opened(self) -> BlockModel:
        """The model, not built before a block has to be computed."""
        if self._model is None:
            self._model = BlockModel(self._checkpoint, self._device, self._dtype)
            self._hidden = self._model.embed(cast(Tensor, self._tokens), self._batch_size)
        return self._model
