"""Decoder blocks one at a time: build a block, load it, run it on hidden states.

The inputs of the first block, and the keyword arguments (masks, rotary tables) that each block gets,
come from the model's own forward code, run with recorders in place of its blocks. So a new
architecture needs no attention or mask code here.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alphaquant.clock import timed
from alphaquant.errors import ModelError
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.device import WIDE_IN_PASSES, all_cores, training_products
from alphaquant.models.experts import ExpertLinear, dense_passes, has_experts, unfuse
from alphaquant.models.head import Head
from alphaquant.models.read_ahead import in_order
from alphaquant.models.skeleton import skeleton_of
from alphaquant.models.widened import Widened


class _Recorder(nn.Module):
    """Stands in for a block: keeps its keyword arguments and passes the hidden states on."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.kwargs: dict[str, Any] = {}
        for name in ("attention_type", "layer_type"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.kwargs = kwargs
        return hidden_states


class BlockModel:
    """A checkpoint as a sequence of decoder blocks on one device.

    Hidden states are lists of batches `[windows, length, hidden]` on that device, or wherever who holds them puts them.
    """

    @timed("load weights")
    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        with timed("build"):
            skeleton = skeleton_of(checkpoint, dtype)
        inner = skeleton.model
        self._routed = has_experts(inner)
        self._templates: list[nn.Module] = list(inner.layers)
        self._inner: Any = inner
        self._inner.layers = nn.ModuleList(_Recorder(block) for block in self._templates)
        self._compute_buffers: Callable[[nn.Module], None] = skeleton._init_weights
        skeleton.model = nn.Identity()
        self._causal: nn.Module = skeleton
        architecture = checkpoint.architecture
        self._outside = outside = f"{architecture.blocks.rpartition('.')[0]}."
        self._table = f"{architecture.embedding}.weight"
        inside = f"{architecture.blocks}."
        state = {
            stored.removeprefix(outside): self._cast(checkpoint.tensor(stored), stored)
            for stored in checkpoint.entries
            if stored.startswith(outside)
            and not stored.startswith(inside)
            and stored != self._table  # large, and of no use to whoever has hidden states
        }
        self._load(inner, state, outside, "model", later=self._table.removeprefix(outside))
        self.final_norm: nn.Module = self._inner.get_submodule(
            architecture.final_norm.removeprefix(outside)
        )

    def embed(self, tokens: Tensor, batch_size: int) -> list[Tensor]:
        """`[windows, length]` token ids to the first block's inputs, in batches; reads the embedding, and keeps it.

        Raises ModelError when it holds NaN or infinity.
        """
        if self._embedding().weight.is_meta:  # not read yet, or let go
            with timed("load weights"):
                self._set_embedding(self._cast(self.checkpoint.tensor(self._table), self._table))
        return [
            self._record(batch.shape, input_ids=batch.to(self.device))
            for batch in tokens.split(batch_size)
        ]

    def release_embedding(self) -> None:
        """Give the memory of the embedding back; `embed` reads it again."""
        self._set_embedding(torch.empty_like(self._embedding().weight, device="meta"))

    def _embedding(self) -> nn.Embedding:
        name = self.checkpoint.architecture.embedding.removeprefix(self._outside)
        return self._inner.get_submodule(name)  # type: ignore[no-any-return]

    def _set_embedding(self, weight: Tensor) -> None:
        self._embedding().weight = nn.Parameter(weight, requires_grad=False)

    @timed("load weights")
    def block(
        self, index: int, weights: Mapping[str, Tensor] | None = None, *, narrow: bool = False
    ) -> nn.Module:
        """Decoder block `index` with its weights from disk; `weights` (by linear name) replace some.

        A `narrow` one keeps its linears in the 16 bits that they are stored in and widens one at a time as it runs,
        which computes the same; it is for looking at, not for training.
        """
        block = copy.deepcopy(self._templates[index]).eval()
        unfuse(block, share=False)
        architecture = self.checkpoint.architecture
        prefix = f"{architecture.blocks}.{index}."
        narrowed = self._narrowed(block, index) if narrow else set()
        state = {}
        for linear, weight in (weights or {}).items():
            name = f"{architecture.module_name(linear.removeprefix(prefix))}.weight"
            state[name] = self._cast(weight, f"{linear}.weight", narrow=name in narrowed)
        buffers = dict(block.named_buffers())
        modules = {
            stored: architecture.module_name(stored.removeprefix(prefix))
            for stored in self.checkpoint.entries
            if stored.startswith(prefix)
        }
        # what is replaced need not be read
        absent = {stored: name for stored, name in modules.items() if name not in state}
        read = in_order(self.checkpoint.tensor, absent, self.device)
        for (stored, name), tensor in zip(absent.items(), read, strict=True):
            if name in buffers:  # it is no weight, so it keeps the precision that it is stored in
                state[name] = finite(tensor, stored).to(self.device)
            else:
                state[name] = self._cast(tensor, stored, narrow=name in narrowed)
        self._load(block, state, prefix, f"block {index}")
        return block

    @timed("load weights")
    def put(self, block: nn.Module, index: int, weights: Mapping[str, Tensor]) -> None:
        """Let `weights`, by linear name and without NaN, be those of a block from now on, as `block` would have given them."""
        for linear, weight in weights.items():
            module = self.linear(block, index, linear)
            narrow = isinstance(module, Widened) and weight.element_size() == 2
            cast = weight.to(self.device, weight.dtype if narrow else self.dtype)
            module.weight = nn.Parameter(cast, requires_grad=False)

    def _narrowed(self, block: nn.Module, index: int) -> set[str]:
        """Let the block's linears hold what is narrower than the products are; names of their weights."""
        if self.dtype.itemsize <= 2:
            return set()
        found = set()
        for spec in self.checkpoint.block_specs(index):
            name = self._module(index, spec.name)
            linear = block.get_submodule(name)
            # other kinds have a forward of their own
            if type(linear) in (nn.Linear, ExpertLinear) and spec.role != "router":
                assert isinstance(linear, nn.Linear)
                block.set_submodule(name, Widened.like(linear))
                found.add(f"{name}.weight")
        return found

    def linear(self, block: nn.Module, index: int, name: str) -> nn.Module:
        """The submodule (with a `.weight`) that a linear's name on disk means."""
        return block.get_submodule(self._module(index, name))

    def expert(self, block: nn.Module, index: int, name: str) -> nn.Module:
        """The routed expert that a linear, by its name on disk, is part of."""
        return block.get_submodule(self._module(index, name).rpartition(".")[0])

    def _module(self, index: int, linear: str) -> str:
        """A linear's path inside its block."""
        architecture = self.checkpoint.architecture
        return architecture.module_name(linear.removeprefix(f"{architecture.blocks}.{index}."))

    def run(
        self,
        block: nn.Module,
        index: int,
        hidden: Tensor,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """One batch `[windows, length, hidden]` through a block, on the device.

        `weights` by linear stand in for the block's own; gradients reach them.
        """
        hidden, kwargs = hidden.to(self.device), self._kwargs(index, hidden)
        replaced = {
            f"{self._module(index, linear)}.weight": weight.to(self.dtype)
            for linear, weight in (weights or {}).items()
        }
        with all_cores(hidden.shape[-1], WIDE_IN_PASSES), self.products_for(hidden):
            return functional_call(block, replaced, (hidden,), kwargs)  # type: ignore[no-any-return]

    def products_for(self, hidden: Tensor) -> contextlib.AbstractContextManager[None]:
        """While open, products for such hidden states, forward or backward, come from the CPU's faster library."""
        return dense_passes(self._routed, hidden.shape[:-1].numel(), hidden)

    def learn(
        self,
        block: nn.Module,
        index: int,
        hidden: Tensor,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """`run` for whoever goes along a gradient: its products may be rounded, unless no gradient is asked for."""
        with training_products(hidden):
            return self.run(block, index, hidden, weights)

    def advance(self, block: nn.Module, index: int, hidden: list[Tensor]) -> Iterator[Tensor]:
        """The block's outputs, batch by batch, each kept where its input lay."""
        for batch in hidden:
            yield self.outputs(block, index, batch)

    @torch.no_grad()
    def outputs(self, block: nn.Module, index: int, batch: Tensor) -> Tensor:
        """What a block makes of one batch, where that lay."""
        return self.run(block, index, batch).to(batch.device)

    @timed("load weights")
    def head(self, weight: Tensor | None = None) -> Head:
        """Last hidden states to logits, tied or not, with `weight` `[vocabulary, hidden]` instead of the stored one.

        Raises ModelError as `Checkpoint.head_weight` does.
        """
        causal: Any = copy.deepcopy(self._causal)
        state = {
            stored.removeprefix("lm_head."): self._cast(self.checkpoint.tensor(stored), stored)
            for stored in self.checkpoint.entries
            if stored.startswith("lm_head.") and stored != "lm_head.weight"
        }
        weight = self.checkpoint.head_weight() if weight is None else weight
        state["weight"] = self._cast(weight, "lm_head.weight")
        self._load(causal.lm_head, state, "lm_head.", "head")
        return Head(causal)

    def _kwargs(self, index: int, hidden: Tensor) -> dict[str, Any]:
        if getattr(self, "_shape", None) != hidden.shape[:2]:
            blank = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            self._record(hidden.shape, inputs_embeds=blank)
        return self._inner.layers[index].kwargs  # type: ignore[no-any-return]

    def _record(self, shape: torch.Size, **inputs: Tensor) -> Tensor:
        """What reaches the first block, and the recorders' keyword arguments for inputs of this shape."""
        self._shape = shape[:2]
        first: list[Tensor] = []
        hook = self._inner.layers[0].register_forward_hook(
            lambda _module, _args, out: first.append(out)
        )
        try:
            with torch.no_grad():
                self._inner(**inputs, use_cache=False)
        finally:
            hook.remove()
        return first[0]

    def _load(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        prefix: str,
        what: str,
        later: str | None = None,
    ) -> None:
        """Give a module, which has none yet, its tensors: the very ones, so that nothing is held twice.

        One of them, by its name in the module, may come `later`.
        """
        folder = self.checkpoint.path
        self._restore_buffers(module)
        try:
            missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
        except RuntimeError as error:
            raise ModelError(
                f"{what} of {folder} does not fit its config.json: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        if absent := [name for name in missing if name != later]:
            raise ModelError(f"{folder} lacks {prefix}{absent[0]}, which its config.json asks for")
        if harmful := [name for name in unexpected if "rotary_emb" not in name]:
            raise ModelError(
                f"{folder} has {prefix}{harmful[0]}, for which a "
                f"{self.checkpoint.architecture.model_type} {what.partition(' ')[0]} has no place"
            )
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def _restore_buffers(self, module: nn.Module) -> None:
        """Compute what no checkpoint stores, such as rotary tables and scales of embeddings."""
        for part in module.modules():
            absent = part._non_persistent_buffers_set
            for name in absent:
                buffer = part._buffers[name]
                if buffer is not None and buffer.is_meta:
                    part._buffers[name] = torch.empty_like(buffer, device=self.device)
            if absent:
                self._compute_buffers(part)

    def _cast(self, tensor: Tensor, name: str, *, narrow: bool = False) -> Tensor:
        """A stored tensor on the device. Raises ModelError when it holds NaN or infinity."""
        # looked through where it will be: a GPU does that faster
        there = tensor.detach().to(self.device, non_blocking=self.device.type == "cuda")
        if there.is_floating_point():
            finite(there, name)
        kept = narrow and there.dtype in (torch.bfloat16, torch.float16)
        return there if kept else there.to(self.dtype)
