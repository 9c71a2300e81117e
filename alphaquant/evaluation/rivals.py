"""Rivals: other plans for the same model, so that a report can tell what the chosen one is worth.

Each rival is quantized from the same calibration windows and measured on the same held-out windows, before
any router training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_random import random_plan
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.quantized_block import block_weights
from alphaquant.config import (
    AllocationConfig,
    ComparisonConfig,
    DefaultScheme,
    QuantizationConfig,
)
from alphaquant.errors import PlanError
from alphaquant.evaluation.bootstrap import bootstrap_score, resample_weights, weighted_mean
from alphaquant.evaluation.evaluate import load_model
from alphaquant.evaluation.scores import HELDOUT, Score
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter, track, unreported

OWN_PLAN = "own plan, routers untrained"
ROTATED = "rotated, not quantized"


def rival_scores(
    checkpoint: Checkpoint,
    own: QuantPlan,
    own_blocks: Sequence[Path],
    tokens: Tensor,  # [samples, length] calibration
    windows: Tensor,  # [windows, length] held out
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    comparison: ComparisonConfig,
    *,
    device: torch.device,
    batch_size: int,
    original: Checkpoint | None = None,
) -> list[Score]:
    """Mean token KL (`kl_mean`) and `bits_per_weight` of each rival, and of the own plan likewise.

    `original` is given when `checkpoint` is its rotated form: that one's own KL is measured then too.
    """
    ruler = _Ruler(checkpoint, original, windows, device, batch_size)
    scores = [] if original is None else [ruler.divergence(ROTATED)]
    scores += ruler.measure(OWN_PLAN, own, own_blocks)
    rivals = list(_rivals(checkpoint, own, allocation, quantization, comparison))
    for label, plan, rounding in track(rivals, "rival plan", len(rivals)):
        with tempfile.TemporaryDirectory() as folder, unreported():
            blocks = quantize_blocks(
                checkpoint,
                plan,
                tokens,
                rounding,
                device=device,
                batch_size=batch_size,
                blocks=FreshBlocks(Path(folder)),
            )
            scores += ruler.measure(label, plan, blocks)
    return scores


def _rivals(
    checkpoint: Checkpoint,
    own: QuantPlan,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    comparison: ComparisonConfig,
) -> Iterator[tuple[str, QuantPlan, QuantizationConfig]]:
    for text in comparison.uniform:
        # every value from the given section or spelled out: defaults of the config are in no key
        uniform = allocation.model_copy(
            update={
                "policy": "uniform",
                "default": DefaultScheme(wq=text, aq=None, group_size=None),
                "overrides": (),
                "skip_attention": False,
            }
        )
        plan = allocate(checkpoint.specs, uniform, quantization)
        for method in comparison.methods:
            update: dict[str, Any] = {"method": method}
            if method == "rtn":  # the baseline of the comparison, whatever the run does on top
                update["tune"] = "none"
            yield f"uniform {text}, {method}", plan, quantization.model_copy(update=update)
    equal_bits = allocation.model_copy(update={"target_bits": own.bits_per_weight})
    for number in range(1, comparison.random + 1):
        seed = comparison.seed + number
        try:
            plan = random_plan(checkpoint.specs, equal_bits, quantization, seed, tolerance=0.01)
        except PlanError as error:
            reporter().note(f"comparison: no random plans ({error})")
            return
        yield f"random plan {number}", plan, quantization


class _Ruler:
    """The original's last hidden states on the held-out windows, against which models are measured."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        original: Checkpoint | None,
        windows: Tensor,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._batches = list(windows.split(batch_size))
        self._model = _loaded(original or checkpoint, device)
        # hidden states, not logits: exact, and smaller by vocabulary / hidden size
        self._original = [self._hidden(batch).cpu() for batch in self._batches]
        self._head = self._model.get_output_embeddings()
        if original is not None:
            self._model = _loaded(checkpoint, device)
        self._live = LiveCheckpoint(self._model)
        self._weights = resample_weights(windows.shape[0])

    def measure(self, label: str, plan: QuantPlan, blocks: Sequence[Path]) -> list[Score]:
        """Put the quantized blocks into the model and compare."""
        for index, folder in enumerate(blocks):
            for name, weight in block_weights(self._checkpoint, index, folder).items():
                self._live.replace(name, weight)
        bits = Score(HELDOUT, "bits_per_weight", plan.bits_per_weight, model=label)
        return [self.divergence(label), bits]

    def divergence(self, label: str) -> Score:
        """Mean token KL of the model as it is."""
        kl = torch.cat(
            [
                self._divergence(original, self._hidden(batch))
                for batch, original in zip(self._batches, self._original, strict=True)
            ]
        )
        return bootstrap_score(
            weighted_mean(kl.double().cpu()),
            self._weights,
            task=HELDOUT,
            metric="kl_mean",
            model=label,
        )

    @torch.no_grad()
    def _hidden(self, batch: Tensor) -> Tensor:
        return self._model.model(batch.to(self._device), use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    @torch.no_grad()
    def _divergence(self, original: Tensor, ours: Tensor) -> Tensor:
        """Mean token KL of each window `[windows]`, over the tokens that predict another of the window."""
        head = self._model.get_output_embeddings()
        means = []
        for first, second in zip(original, ours, strict=True):  # one window's logits at a time
            log_p = torch.log_softmax(self._head(first[:-1].to(self._device)).float(), -1)
            log_q = torch.log_softmax(head(second[:-1]).float(), -1)
            means.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        return torch.stack(means)


def _loaded(checkpoint: Checkpoint, device: torch.device) -> Any:
    return load_model(checkpoint.path, device, checkpoint.trust_remote_code)
