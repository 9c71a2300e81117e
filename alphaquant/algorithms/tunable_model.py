"""The quantized model as end-to-end tuning sees it: codes fixed, scales and norms as parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from alphaquant.algorithms.quantized_block import (
    block_weights,
    blocks_of,
    load_block,
    load_moved,
    quantized_head,
)
from alphaquant.algorithms.router_kl import full_kl
from alphaquant.algorithms.scaled_stack import ScaledStack
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype


class Norm:
    """One norm's weight; what a forward pass sees is rounded to the stored dtype."""

    def __init__(self, stored: Tensor, device: torch.device, offset: float = 0.0) -> None:
        """`offset` is what the model adds to the stored weight."""
        self._dtype = stored.dtype
        self._start = stored.to(device).float()
        self.change = torch.zeros_like(self._start, requires_grad=True)
        """What is added, in units of the root mean square of the weight."""
        self._unit = (self._start + offset).square().mean().sqrt()

    def weight(self) -> Tensor:
        """The weight `[channels]`; differentiable in `change`."""
        moved = self._start + self._unit * self.change
        return moved + (moved.to(self._dtype).float() - moved).detach()

    def stored(self) -> Tensor:
        """The weight as it would be stored now, on the CPU."""
        return self.weight().detach().to(self._dtype).cpu()


class TunableBlock:
    """A block's stacks and norms, and the module that runs with them."""

    def __init__(self, model: BlockModel, checkpoint: Checkpoint, index: int, folder: Path) -> None:
        self._model, self._index = model, index
        quantized = load_block(folder)
        self._block = model.block(index, block_weights(checkpoint, index, folder, model.device))
        self.stacks = [
            ScaledStack(names, [quantized[n] for n in names], dtype, model.device)
            for names, dtype in _alike(checkpoint, quantized)
        ]
        for name in quantized:  # its values come from the stack; the module need not hold them too
            module = model.linear(self._block, index, name)
            module.weight = nn.Parameter(torch.empty(0, device=model.device), requires_grad=False)
        norms, moved = checkpoint.block_norms(index), load_moved(folder)
        self.norms = {
            name: Norm(
                moved[name] if name in moved else checkpoint.weight(name),
                model.device,
                checkpoint.architecture.norm_offset,
            )
            for name in norms
        }
        self.moved = {name: value for name, value in moved.items() if name not in norms}
        """Kept linears that are not the checkpoint's."""

    def run(self, hidden: Tensor) -> Tensor:
        """One batch `[windows, length, hidden]` through the block.

        Weights and activations are made again for the backward pass instead of being kept.
        """
        if not torch.is_grad_enabled():
            return self._run(hidden)
        output: Tensor = recompute(self._run, hidden, use_reentrant=False)
        return output

    def _run(self, hidden: Tensor) -> Tensor:
        weights = {name: value for stack in self.stacks for name, value in stack.weights()}
        weights |= {name: norm.weight() for name, norm in self.norms.items()}
        return self._model.learn(self._block, self._index, hidden, weights)


class TunableModel:
    """All blocks, and the final norm and the head, quantized or not, which stay."""

    def __init__(
        self, checkpoint: Checkpoint, folders: Sequence[Path], device: torch.device
    ) -> None:
        self._model = BlockModel(checkpoint, device, compute_dtype(device))
        self.blocks = [
            TunableBlock(self._model, checkpoint, index, folder)
            for index, folder in enumerate(blocks_of(checkpoint, folders))
        ]
        self._head = self._model.head()
        quantized = quantized_head(checkpoint, folders)
        self._our_head = self._head if quantized is None else self._model.head(quantized)

    def parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Logarithms of scale factors, changes of norms."""
        factors = [
            stack.factor for b in self.blocks for stack in b.stacks if stack.factor is not None
        ]
        return factors, [norm.change for block in self.blocks for norm in block.norms.values()]

    def state(self) -> list[Tensor]:
        """A copy of every parameter."""
        return [parameter.detach().clone() for parameter in chain(*self.parameters())]

    def load(self, state: Sequence[Tensor]) -> None:
        """Set every parameter."""
        with torch.no_grad():
            for parameter, value in zip(chain(*self.parameters()), state, strict=True):
                parameter.copy_(value)

    def stored(self, index: int) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
        """Block `index` as it would be stored now: quantized linears, and norms with what else moved, by name."""
        block = self.blocks[index]
        norms = {name: norm.stored() for name, norm in block.norms.items()}
        weights = {name: w for stack in block.stacks for name, w in stack.quantized()}
        return weights, norms | block.moved

    def loss(self, tokens: Tensor, original: Tensor) -> Tensor:
        """Mean KL in nats per token from the original's normed last hidden states, of `tokens [windows, length]`."""
        model = self._model
        cuda = model.device.type == "cuda"
        with torch.autocast(model.device.type, model.dtype, enabled=cuda):
            hidden = model.embed(tokens, tokens.shape[0])[0]
            for block in self.blocks:
                hidden = block.run(hidden)
            last = model.final_norm(hidden).to(model.dtype)
            return full_kl(self._head, original, last, self._our_head)


def _alike(
    checkpoint: Checkpoint, quantized: Mapping[str, QuantizedWeight]
) -> Iterator[tuple[list[str], torch.dtype]]:
    """Linears that can form a stack, and the dtype that the checkpoint stores them in."""
    families: dict[tuple[object, ...], list[str]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, weight in quantized.items():
        dtypes[name] = checkpoint.dtype(f"{name}.weight")
        families.setdefault((weight.scheme, weight.shape, dtypes[name]), []).append(name)
    for names in families.values():
        yield names, dtypes[names[0]]
