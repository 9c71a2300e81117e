"""The two models of router training: the original that is imitated, and the quantized one that learns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from alphaquant.algorithms.quantized_block import block_weights
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.progress import track


class Teacher:
    """The original model's last hidden states and expert choices, streamed block by block.

    Hidden states instead of logits are kept: exact, and smaller by vocabulary / hidden size.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[Tensor],  # [windows, length] each
        device: torch.device,
        routers: Sequence[LinearSpec],
    ) -> None:
        model = BlockModel(checkpoint, device, compute_dtype(device))
        self.batches = batches
        self._head = model.head()
        self._device = device
        self._choices: list[list[Tensor]] = [[] for _ in batches]  # per batch, per router
        hidden = [model.embed(batch, batch.shape[0])[0].cpu() for batch in batches]
        by_block = {spec.block: spec for spec in routers}
        for index in track(range(checkpoint.blocks), "original block", checkpoint.blocks):
            block = model.block(index)
            spec = by_block.get(index)
            modules = [model.linear(block, index, spec.name)] if spec else []
            with expert_choices(modules) as seen:
                hidden = list(model.advance(block, index, hidden))
            for choices, chosen in zip(self._choices, seen, strict=False):
                choices.append(chosen)
        with torch.no_grad():
            self._hidden = [model.final_norm(batch.to(device)).cpu() for batch in hidden]

    def log_probabilities(self, batch: int) -> Tensor:
        """`[windows, length, vocabulary]` in fp32."""
        with torch.no_grad():
            logits = self._head(self._hidden[batch].to(self._device))
        return torch.log_softmax(logits.float(), -1)

    def changed(self, choices: Mapping[int, Sequence[Tensor]]) -> list[float]:
        """Per router, share of tokens whose set of experts differs; choices by batch, per router."""
        shares = []
        for router in range(len(next(iter(choices.values()), ()))):
            differs = torch.cat(
                [
                    (mine[router] != self._choices[batch][router]).any(-1)
                    for batch, mine in choices.items()
                ]
            )
            shares.append(float(differs.float().mean()))
        return shares


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
            self._model.block(index, block_weights(checkpoint, index, folder))
            for index, folder in enumerate(folders)
        ]
        self._head = self._model.head()
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
        ours = self._log_probabilities(teacher.batches[batch])
        if method == "kl":
            return _kl(teacher.log_probabilities(batch), ours).mean()
        targets = teacher.batches[batch][:, 1:].to(ours.device)
        return -ours[:, :-1].gather(-1, targets[..., None]).mean()

    def held_out(
        self, teacher: Teacher, batches: Sequence[int]
    ) -> tuple[float, dict[int, list[Tensor]]]:
        """Mean KL to the original over batches, and each batch's expert choices per router."""
        total, count = 0.0, 0
        choices: dict[int, list[Tensor]] = {}
        for batch in batches:
            with torch.no_grad(), expert_choices(list(self._routers.values())) as seen:
                ours = self._log_probabilities(teacher.batches[batch])
                kl = _kl(teacher.log_probabilities(batch), ours)
            choices[batch] = list(seen)
            total += float(kl.sum())
            count += kl.numel()
        return total / count, choices

    def _log_probabilities(self, tokens: Tensor) -> Tensor:
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
            logits = self._head(model.final_norm(hidden))
        return torch.log_softmax(logits.float(), -1)


@contextlib.contextmanager
def expert_choices(routers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While open, gathers each router call's experts, sorted, `[tokens, k]` on the CPU."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output[2].detach().sort(-1).values.cpu())

    with contextlib.ExitStack() as hooks:
        for router in routers:
            hooks.callback(router.register_forward_hook(keep).remove)
        yield seen


def _kl(original: Tensor, quantized: Tensor) -> Tensor:
    """KL(original || quantized) per token `[windows, length]` from log-probabilities."""
    return (original.exp() * (original - quantized)).sum(-1)
