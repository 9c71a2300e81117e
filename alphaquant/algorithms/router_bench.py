"""The bench on which one router is repaired: its block of both models, and what reaches and leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.algorithms.router_align import RouterAlignment
from alphaquant.algorithms.router_tune import RouterLesson, tune_router
from alphaquant.config import RouterConfig
from alphaquant.models.block import BlockModel
from alphaquant.models.linear import LinearSpec


@dataclass(frozen=True)
class Sight:
    """One pass through a block, by batch, on the CPU."""

    outputs: list[Tensor]  # [windows, length, hidden]
    inputs: list[Tensor]  # [tokens, in] of the router
    logits: list[Tensor]  # [tokens, experts]
    choices: list[Tensor]  # [tokens, k] experts, sorted

    def changed(self, original: Sight, batches: int) -> float:
        """Share of the first batches' tokens whose set of experts differs."""
        ours, theirs = (torch.cat(sight.choices[:batches]) for sight in (self, original))
        return float((ours != theirs).any(-1).float().mean())


class RouterBench:
    """A quantized block around the router that is repaired; the first `held` batches are held out."""

    def __init__(
        self, model: BlockModel, block: nn.Module, spec: LinearSpec, hidden: Sequence[Tensor]
    ) -> None:
        if spec.block is None:
            raise ValueError(f"{spec.name} is no router of a decoder block")
        self._model, self._block, self._index, self._spec = model, block, spec.block, spec
        self._router = model.linear(block, spec.block, spec.name)
        self._hidden = hidden

    def look(self, router: Tensor | None = None) -> Sight:
        """Pass all batches through the block, with another `router [experts, in]` when one is given."""
        sight = Sight([], [], [], [])
        for batch in self._hidden:
            with torch.no_grad():
                out, x, logits, choices = self._run(batch, router)
            sight.outputs.append(out.cpu())
            sight.inputs.append(x.reshape(-1, x.shape[-1]).cpu())
            sight.logits.append(logits.float().cpu())
            sight.choices.append(choices.sort(-1).values.cpu())
        return sight

    def error(self, router: Tensor, original: Sight, held: int) -> float:
        """Mean squared error of the block's output on the first `held` batches."""
        errors = []
        for batch, target in zip(self._hidden[:held], original.outputs, strict=False):
            with torch.no_grad():
                out = self._run(batch, router)[0]
            errors.append((out.float() - target.to(out.device).float()).square().flatten())
        return float(torch.cat(errors).mean())

    def aligned(self, router: Tensor, original: Sight, ours: Sight, held: int) -> Tensor:
        """The router in closed form, from the batches that are not held out."""
        device = self._model.device
        alignment = RouterAlignment(self._spec.cols, device)
        for theirs, mine in zip(original.inputs[held:], ours.inputs[held:], strict=True):
            alignment.update(theirs.to(device), mine.to(device))
        stored = self._model.checkpoint.weight(self._spec.name)
        return alignment.aligned(router.to(device), stored.to(device))

    def tuned(
        self, router: Tensor, original: Sight, energy: float, held: int, config: RouterConfig
    ) -> Tensor:
        """The router trained on the batches that are not held out."""

        def run(weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            out, _, logits, _ = self._run(hidden, weight)
            return out, logits

        lesson = RouterLesson(
            run,
            self._hidden[held:],
            original.outputs[held:],
            original.logits[held:],
            energy,
            self._model.checkpoint.architecture.scoring,
        )
        return tune_router(
            router.to(self._model.device),
            lesson,
            lambda weight: self.error(weight, original, held),
            config,
        )

    def _run(self, hidden: Tensor, router: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The block's output, and the router's input, logits and choices."""
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def keep(_module: nn.Module, args: Any, output: Any) -> None:
            seen.append((args[0], output[0], output[2]))

        weights = None if router is None else {self._spec.name: router.to(self._model.device)}
        with self._router.register_forward_hook(keep):
            out = self._model.run(self._block, self._index, hidden, weights)
        return (out, *seen[0])
