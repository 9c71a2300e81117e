"""Looks at one block as it is quantized: at every depth behind what is quantized before it, without correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from alphaquant.algorithms.memory_plan import MemoryPlan
from alphaquant.models.block import BlockModel
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, calls_once, gather
from alphaquant.models.on_demand import OnDemand
from alphaquant.models.shortcuts import Shortcut
from alphaquant.models.shortfalls import Observed
from alphaquant.models.tensor_file import TensorFile


class BlockObserver:
    """Hessians of what linears of block `index` read behind the quantized ones, of all windows of `hidden`."""

    def __init__(
        self,
        model: BlockModel,
        index: int,
        kept: Mapping[str, Tensor],
        hidden: HiddenStates,
        find: Callable[[nn.Module], Sequence[Shortcut]],
        memory: MemoryPlan,
        routing_weight: RoutingWeight,
        sums: TensorFile | None,
    ) -> None:
        """`kept` stand in for linears that are not quantized. Shortcuts that `find` sees in the block are taken, and made on the way."""
        self._model, self._index, self._kept, self._hidden = model, index, kept, hidden
        self._find, self._memory, self._routing_weight = find, memory, routing_weight
        self._sums = sums
        self._ways: Sequence[Shortcut] | None = None
        self._ends = False
        self._block: nn.Module | None = None
        self._put: set[str] = set()  # into the block

    def __call__(self, specs: Sequence[LinearSpec], weights: Mapping[str, Tensor]) -> Observed:
        """What is gathered for `specs`, with `weights` in place of the block's own."""
        block = self._behind(weights)
        if self._ways is None:
            self._ways = self._find(block)
            window = next(iter(self._hidden))[:1]
            self._ends = calls_once(self._model, block, self._index, window)
        seen = gather(
            self._model,
            block,
            self._index,
            self._memory.passes(specs),
            self._hidden,
            self._routing_weight,
            self._sums,
            ways=self._ways,
            ends=self._ends,
        )
        return Observed(seen, {}, {})

    def _behind(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The block with these weights; where memory is limited, it is read again, or it would be held while linears are solved."""
        if self._block is not None:
            fresh = [name for name in weights if name not in self._put]
            self._put.update(fresh)
            self._model.put(self._block, self._index, OnDemand(fresh, weights.__getitem__))
            return self._block
        names = [*self._kept, *weights]
        replaced = OnDemand(names, lambda name: (weights if name in weights else self._kept)[name])
        block = self._model.block(self._index, replaced, narrow=True)
        if not self._memory.limited:
            self._block, self._put = block, set(weights)
        return block
