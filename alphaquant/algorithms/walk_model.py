"""A walk through a model's blocks while they are quantized: hidden states, what each block sees, and what tuning learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from alphaquant.algorithms.block_observer import BlockObserver
from alphaquant.algorithms.lesson import Lesson, Sequel, next_block, predictions
from alphaquant.algorithms.memory_needs import Needs, needs_of
from alphaquant.algorithms.memory_plan import MemoryPlan
from alphaquant.algorithms.quantized_block import block_weights, kept_weights
from alphaquant.clock import Step, timed
from alphaquant.config import QuantizationConfig
from alphaquant.floor import Tokens, quantized_block
from alphaquant.linalg.hessian import HessianAccumulator, white
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import gather
from alphaquant.models.original import Original, watch
from alphaquant.models.shortcuts import Shortcut, by_shortcuts, shortcuts, worth_keeping
from alphaquant.models.shortfalls import Observed, Streams, batches, observe_shortfalls
from alphaquant.models.tensor_file import TensorFile
from alphaquant.plan import QuantPlan
from alphaquant.resident import give_back, give_back_much
from alphaquant.work import Work


class ModelWalk:
    """Hidden states of the quantized model, and of the original, advanced only as far as somebody asks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        memory: MemoryPlan,
        config: QuantizationConfig,
        scratch: Path | None,
    ) -> None:
        self._checkpoint, self._tokens, self._config = checkpoint, tokens, config
        self._device, self._dtype, self._batch_size = device, dtype, memory.batch_size
        self._memory, self._scratch = memory, scratch
        self._model: BlockModel | None = None
        self._hidden = HiddenStates([])
        self._sums = TensorFile(scratch) if memory.hessians_on_disk else None
        self._next = 0
        self._latest: tuple[int, Original] | None = None  # of the original's blocks
        alike = memory.taught_at_once == memory.batch_size
        self._in_halves = config.corrects and alike
        # whether whoever looks at a block runs it in the same batches as whoever passes it
        self._same_batches = alike or not config.corrects
        self._ways: list[Shortcut] = []  # through the block that is being solved
        between = memory.limited and config.takes_shortcuts and tokens is not None
        self._between = TensorFile(scratch) if between else None

    @property
    def calibrated(self) -> bool:
        """Whether there is text to look at."""
        return self._tokens is not None

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
        block = model.block(index, narrow=True)
        passes = self._memory.passes(specs)
        return gather(
            model,
            block,
            index,
            passes,
            self._hidden,
            self._config.routing_weight,
            self._sums,
            magnitudes=self._config.method == "awq",
        )

    def observer(self, index: int, kept: Sequence[str], folders: Sequence[Path]) -> BlockObserver:
        """Looks at block `index` behind the finished blocks in `folders` as it is solved in order; linears `kept` are not quantized."""
        model = self._advanced(index, folders)
        return BlockObserver(
            model,
            index,
            kept_weights(self._checkpoint, kept),
            self._hidden,
            partial(self._find_ways, model, index),
            self._memory,
            self._config.routing_weight,
            self._sums,
        )

    def stands_before(self, index: int) -> bool:
        """Whether block `index` can be looked at as things are."""
        return not self.calibrated or (self._model is not None and self._next == index)

    def forget(self) -> None:
        """Let go of what was put into a file by who looked at the last block."""
        if self._sums:
            self._sums.clear()

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
        self._ways = []  # through a block that was solved in vain
        while self._next < blocks:
            folder = folders[self._next]
            self._step(block_weights(self._checkpoint, self._next, folder, self._device))
        return model

    def pass_on(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Go on behind block `index` with its `weights`, where that is the next one."""
        ways = self._ways if self._same_batches else []
        self._ways = []
        if self._model is not None and self._next == index:
            self._step(weights, ways)
        if self._between:
            self._between.clear()

    @timed("forward")
    def _step(self, weights: Mapping[str, Tensor], ways: Sequence[Shortcut] = ()) -> None:
        model = self._opened()
        block = model.block(self._next, weights, narrow=True)
        run = by_shortcuts(ways, block, partial(model.outputs, block, self._next))
        self._hidden.advance(run)
        self._next += 1
        del block
        give_back_much()  # many blocks are passed without anything else in between when a run is resumed

    def lesson(
        self, index: int, folders: Sequence[Path], kept: Sequence[str], *, ahead: bool
    ) -> Lesson:
        """What reaches block `index` behind the finished blocks in `folders`, and what the original's answers to its own input.

        Its linears `kept` are not quantized.
        """
        model = self._advanced(index, folders)
        original = self._original(index)
        block = model.block(index, kept_weights(self._checkpoint, kept))
        inputs, targets = self._hidden.together().to(self._device), original.answers
        together = self._memory.taught_at_once
        ways = self._find_ways(model, index, block)

        def run(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
            return model.learn(block, index, hidden, weights)

        def observe(specs: Sequence[LinearSpec], weights: Mapping[str, Tensor]) -> Observed:
            streams, stored = Streams(inputs, original, together, ways), dict(weights)
            return observe_shortfalls(
                model, block, index, specs, stored, streams, self._config.routing_weight
            )

        last = index + 1 == self._checkpoint.blocks
        sequel: Sequel | None = None
        if ahead and last:
            sequel = predictions(model.final_norm, model.head(), targets)
        elif ahead:
            following = partial(model.learn, model.block(index + 1), index + 1)
            sequel = next_block(following, self._original(index + 1).answers)
        looks = observe if self._config.corrects else None
        return Lesson(run, inputs, targets, looks, sequel, last, together)

    @timed("forward")
    def _find_ways(self, model: BlockModel, index: int, block: nn.Module) -> list[Shortcut]:
        """The shortcuts there may be through a block that is solved next; `pass_on` takes them."""
        if self._config.takes_shortcuts:
            roles = worth_keeping(self._device, limited=self._memory.limited)
            if not self._same_batches:  # then nobody runs the block behind its down projection
                roles = ("o",)
            windows = len(cast(Tensor, self._tokens))
            sample = next(iter(self._hidden))[:1]
            beside = self._memory.beside_shortcuts(self._needs, self._checkpoint.block_specs(index))
            file = self._between
            self._ways = shortcuts(model, block, index, sample, windows, roles, beside, file)
        return self._ways

    @cached_property
    def _needs(self) -> Needs:
        """What the model takes of memory."""
        windows, length = cast(Tensor, self._tokens).shape
        return needs_of(self._checkpoint, windows, length, self._config, self._dtype.itemsize)

    @timed("original's blocks")
    def _original(self, index: int) -> Original:
        """What the original's block `index` answers to its own input; no index may be lower than the last one."""
        model = self._opened()
        if self._latest is None:
            hidden = torch.cat(model.embed(cast(Tensor, self._tokens), self._batch_size))
            model.release_embedding()
            self._latest = -1, Original({}, {None: hidden})
        at, latest = self._latest
        while at < index:
            at, hidden = at + 1, latest.answers
            self._latest = None
            del latest  # what it has besides is of no use behind its block
            specs = (
                self._checkpoint.block_specs(at) if self._config.corrects and at == index else []
            )
            latest = watch(model, model.block(at), at, specs, hidden, self._batch_size)
        self._latest = at, latest
        return latest

    @timed("forward")
    def _opened(self) -> BlockModel:
        """The model, not built before a block has to be computed."""
        if self._model is None:
            self._model = model = BlockModel(self._checkpoint, self._device, self._dtype)
            tokens = cast(Tensor, self._tokens)
            if self._in_halves:
                parts = [tokens[part] for _, part in batches(len(tokens), self._batch_size)]
            else:
                parts = list(tokens.split(self._batch_size))
            self._hidden = HiddenStates(
                (model.embed(batch, self._batch_size)[0] for batch in parts),
                TensorFile(self._scratch) if self._memory.hidden_on_disk else None,
            )
            model.release_embedding()
            give_back()
        return self._model
