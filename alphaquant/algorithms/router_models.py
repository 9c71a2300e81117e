"""The two models of router training: the original that is imitated, and the quantized one that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from alphaquant.algorithms.quantized_block import block_weights, blocks_of, quantized_head
from alphaquant.algorithms.router_kl import (
    TopPrediction,
    cross_entropy,
    kl_divergence,
    top_kl,
    top_prediction,
)
from alphaquant.algorithms.router_windows import Windows
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import expert_choices
from alphaquant.models.streamed import last_hidden_and_choices


class Teacher:
    """The original model's predictions and expert choices, streamed block by block.

    Of the windows that are learned from it keeps the likeliest tokens, of those held out the last hidden
    states, which give exact predictions.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Windows,
        device: torch.device,
        routers: Sequence[LinearSpec],
    ) -> None:
        model = BlockModel(checkpoint, device, compute_dtype(device))
        self.windows = windows
        count = len(windows.held)
        by_block = {spec.block: spec for spec in routers if spec.block is not None}
        last, seen = last_hidden_and_choices(model, windows.held + windows.train, by_block)
        self.choices = [torch.cat(batches[:count]) for batches in seen.values()]
        """Per router, experts of the held-out tokens, sorted, `[tokens, k]`."""
        head = model.head()
        self.held = last[:count]
        """Last hidden states `[windows, length, hidden]` of the held-out batches, on the CPU."""
        self.train: list[TopPrediction] = [
            top_prediction(head, batch.to(device)) for batch in last[count:]
        ]
        """Predictions for the batches that are learned from."""


class Student:
    """The quantized model, whole in memory, with fp32 routers that require gradients."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folders: Sequence[Path],
        device: torch.device,
        routers: Sequence[LinearSpec],
    ) -> None:
        self._model = BlockModel(checkpoint, device, compute_dtype(device))
        self._blocks = [
            self._model.block(index, block_weights(checkpoint, index, folder, device))
            for index, folder in enumerate(blocks_of(checkpoint, folders))
        ]
        quantized = quantized_head(checkpoint, folders)
        self._original_head = self._model.head()
        self._head = self._original_head if quantized is None else self._model.head(quantized)
        self._routers: dict[str, nn.Module] = {}
        for spec in routers:
            if spec.block is None:
                continue
            module = self._model.linear(self._blocks[spec.block], spec.block, spec.name)
            # fp32 masters: updates of bf16 weights at these learning rates would be lost
            module.weight = nn.Parameter(module.weight.detach().float())  # type: ignore[operator]
            self._routers[spec.name] = module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The routers' weights."""
        return [module.weight for module in self._routers.values()]  # type: ignore[misc]

    def state(self) -> dict[str, Tensor]:
        """A copy of the routers' weights by linear name."""
        return {name: m.weight.detach().clone() for name, m in self._routers.items()}  # type: ignore[operator]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the routers' weights."""
        with torch.no_grad():
            for name, module in self._routers.items():
                module.weight.copy_(state[name])  # type: ignore[operator]

    def loss(self, teacher: Teacher, batch: int, method: str) -> Tensor:
        """Mean training loss of a batch, in nats per token."""
        tokens = teacher.windows.train[batch]
        hidden = self._last_hidden(tokens)
        if method == "kl":
            return top_kl(self._head, teacher.train[batch], hidden)
        return cross_entropy(self._head, tokens, hidden)

    def held_out(self, teacher: Teacher) -> tuple[float, list[float]]:
        """Mean KL to the original on held-out windows, and per router the share of tokens that changed experts."""
        kl: list[Tensor] = []
        with torch.no_grad(), expert_choices(list(self._routers.values())) as seen:
            for tokens, original in zip(teacher.windows.held, teacher.held, strict=True):
                last = self._last_hidden(tokens)
                kl.append(kl_divergence(self._original_head, original, last, self._head))
        changed = [
            changed_share(torch.cat(mine), theirs)
            for mine, theirs in zip(seen, teacher.choices, strict=True)
        ]
        return float(torch.cat(kl).mean()), changed

    def _last_hidden(self, tokens: Tensor) -> Tensor:
        """Normed output of the last block `[windows, length, hidden]`."""
        model = self._model
        cuda = model.device.type == "cuda"
        with torch.autocast(model.device.type, model.dtype, enabled=cuda):
            hidden = model.embed(tokens, tokens.shape[0])[0]
            for index, block in enumerate(self._blocks):
                if torch.is_grad_enabled():
                    # activations of one block at a time, at the price of a second forward pass
                    hidden = recompute(model.run, block, index, hidden, use_reentrant=False)
                else:
                    hidden = model.run(block, index, hidden)
            return model.final_norm(hidden).to(model.dtype)  # type: ignore[no-any-return]


def changed_share(ours: Tensor, original: Tensor) -> float:
    """Share of tokens whose set of experts differs; both `[tokens, k]`, sorted."""
    return float((ours != original).any(-1).float().mean())
