"""A walk through a model's blocks while they are quantized: hidden states, what each block sees, and what tuning learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from alphaquant.algorithms.lesson import Lesson, Sequel, next_block, predictions
from alphaquant.algorithms.memory_plan import MemoryPlan
from alphaquant.algorithms.quantized_block import block_weights, kept_weights
from alphaquant.clock import Step, timed
from alphaquant.config import QuantizationConfig
from alphaquant.floor import Tokens, quantized_block
from alphaquant.linalg.hessian import HessianAccumulator, white
from alphaquant.models.attended import Attended, attended
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import free_memory
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, gather
from alphaquant.models.original import Original, watch
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
        self._checkpoint, self._tokens = checkpoint, tokens
        self._device, self._dtype, self._batch_size = device, dtype, memory.batch_size
        self._memory, self._scratch = memory, scratch
        self._routing_weight: RoutingWeight = config.routing_weight
        self._magnitudes = config.method == "awq"
        self._corrects = config.corrects
        self._model: BlockModel | None = None
        self._hidden = HiddenStates([])
        self._sums = TensorFile(scratch) if memory.hessians_on_disk else None
        self._next = 0
        self._latest: tuple[int, Original] | None = None  # of the original's blocks
        # where a block is run in the same batches by whoever looks at it and whoever passes it
        self._in_halves = config.corrects and memory.taught_at_once == memory.batch_size
        # tuning changes q, k and v, and with them what attention hands on
        self._recalls = config.corrects and memory.recalls and config.tune == "none"
        self._handed_on: Attended | None = None  # by attention of the block that is being corrected

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
            self._routing_weight,
            self._sums,
            magnitudes=self._magnitudes,
        )

    def stands_before(self, index: int) -> bool:
        """Whether block `index`, which there is, can be looked at as things are."""
        return index < self._checkpoint.blocks and self._model is not None and self._next == index

    def forget(self) -> None:
        """Let go of what the last `observe` has put into a file."""
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
        while self._next < blocks:
            folder = folders[self._next]
            self._step(block_weights(self._checkpoint, self._next, folder, self._device))
        return model

    def pass_on(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Go on behind block `index` with its `weights`, where that is the next one."""
        handed_on, self._handed_on = self._handed_on, None
        if self._model is not None and self._next == index:
            self._step(weights, handed_on if self._in_halves else None)

    @timed("forward")
    def _step(self, weights: Mapping[str, Tensor], handed_on: Attended | None = None) -> None:
        model = self._opened()
        block = model.block(self._next, weights, narrow=True)
        run: Callable[[Tensor], Tensor] = partial(model.outputs, block, self._next)
        if handed_on is not None and handed_on.whole:
            run = handed_on.recalling(block, run)
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
        handed_on = self._handed_on = self._recallable(model, block, index, inputs)

        def run(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
            return model.learn(block, index, hidden, weights)

        def observe(specs: Sequence[LinearSpec], weights: Mapping[str, Tensor]) -> Observed:
            streams = Streams(inputs, original, together, handed_on)
            return observe_shortfalls(
                model, block, index, specs, weights, streams, self._routing_weight
            )

        last = index + 1 == self._checkpoint.blocks
        sequel: Sequel | None = None
        if ahead and last:
            sequel = predictions(model.final_norm, model.head(), targets)
        elif ahead:
            following = partial(model.learn, model.block(index + 1), index + 1)
            sequel = next_block(following, self._original(index + 1).answers)
        return Lesson(run, inputs, targets, observe, sequel, last, together)

    def _recallable(
        self, model: BlockModel, block: nn.Module, index: int, inputs: Tensor
    ) -> Attended | None:
        """What attention of block `index` will hand on, where it may be kept and half of the free memory holds it."""
        found = attended(model, block, index, inputs) if self._recalls else None
        free = free_memory(inputs.device)
        if found is None or free is None:
            return found
        taken = inputs.shape[:2].numel() * found.width * inputs.element_size()
        return found if taken <= free // 2 else None

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
            specs = self._checkpoint.block_specs(at) if self._corrects and at == index else []
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
