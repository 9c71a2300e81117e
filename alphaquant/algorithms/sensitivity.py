"""Sensitivity: what each format would cost at each linear, predicted without quantizing anything.

Two parts multiply. How far an output moves: GPTQ leaves about Σ_i (W - RTN(W))²_ri v_i per row r,
with v_i = 1 / U_ii² from one Cholesky factor of the input Hessian. How much that matters: the Fisher
information of the row's output, the mean squared gradient of the model's own log-likelihood with
labels drawn from the model, so that half the product is a KL divergence in nats per token.

The forward pass goes block by block, the backward pass block by block in reverse; the whole model is
never in memory. The information is summed in folds of windows, whose spread tells how well it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from alphaquant.algorithms.gptq import search_of
from alphaquant.algorithms.memory_plan import MemoryPlan, busy, memory_within
from alphaquant.algorithms.stacks import Stack, sharing_stacks, stacked_weight
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.linalg.hessian import InverseFactor, inverse_factor, output_error
from alphaquant.linalg.products import passes_of
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.observe import RoutingWeight, gather, output_gradients
from alphaquant.models.tensor_file import TensorFile
from alphaquant.progress import track
from alphaquant.resident import give_back

FISHER_TOKENS = (
    16_384  # of the backward pass, which keeps every block's inputs; the Hessians use all
)
FOLDS = 16
"""Parts of the backward pass's windows that the standard error is taken over."""


def sensitivity_table(
    checkpoint: Checkpoint,
    tokens: Tensor,  # [windows, length]
    schemes: Sequence[Scheme],
    *,
    damping: float = 0.01,
    scale_search: str = "hessian",
    expert_shrinkage: float = 1.0,
    routing_weight: RoutingWeight = "none",
    device: torch.device,
    batch_size: int = 8,
    seed: int = 0,
    memory_limit: int | None = None,
    scratch: Path | None = None,
) -> pd.DataFrame:
    """One row per linear of the blocks and scheme.

    `predicted_loss` is the KL divergence in nats per token that the format would cause there after
    GPTQ, `stderr` its standard error over the calibration windows (NaN with one window), `output_change`
    the mean squared change of the output, summed over its features, and `local_loss` that as a share of
    the output's energy. The process stays below `memory_limit` bytes, with files in `scratch`; raises
    ConfigError where it cannot.
    """
    dtype, config = compute_dtype(device), QuantizationConfig(method="rtn")
    memory = MemoryPlan.on(device, batch_size, config.method)
    windows = fisher_windows(tokens)
    if memory_limit is not None:
        memory = memory_within(
            memory_limit, checkpoint, tokens, config, memory, device, dtype, windows
        )
    else:
        memory = busy(memory, checkpoint, tokens.shape[1], device, dtype)
    model = BlockModel(checkpoint, device, dtype)
    folds = _folds(windows)
    with timed("forward"):
        batches = (model.embed(part, part.shape[0])[0] for part in tokens.split(memory.batch_size))
    hidden = HiddenStates(batches, TensorFile(scratch) if memory.hidden_on_disk else None)
    model.release_embedding()
    sums = TensorFile(scratch) if memory.hessians_on_disk else None
    kept = TensorFile(scratch) if memory_limit is not None else None
    inputs: list[HiddenStates] = []
    moved: dict[tuple[str, Scheme], tuple[Tensor, float]] = {}
    for index in track(range(checkpoint.blocks), "block forward", checkpoint.blocks):
        inputs.append(HiddenStates(_cut(hidden, folds), kept))
        specs = checkpoint.block_specs(index)
        block = model.block(index, narrow=True)
        passes = memory.passes(specs)
        accumulators = gather(
            model, block, index, passes, hidden, routing_weight, sums, onward=True
        )
        del block
        for sharing in sharing_stacks(
            specs, accumulators, expert_shrinkage, at_once=memory.at_once
        ):
            factor = inverse_factor(sharing[0].hessian, damping)
            for stack in sharing:
                moved |= _moved_rows(checkpoint, stack, factor, schemes, scale_search)
            del sharing, stack, factor  # or they would be in memory while the next ones are made
        if sums:
            sums.clear()
        give_back()
    fisher = _fisher(model, _cut(hidden, folds), inputs, folds, seed)
    return pd.DataFrame(
        [
            {
                "linear": spec.name,
                "format": str(scheme),
                "bits_per_weight": scheme.bits_per_weight(spec.cols, rows=spec.rows),
                **_loss(fisher[spec.name], rows, folds),
                "output_change": float(rows.sum()),
                "local_loss": share,
            }
            for spec in checkpoint.specs
            for scheme in schemes
            if (found := moved.get((spec.name, scheme))) is not None
            for rows, share in [found]
        ]
    )


def fisher_windows(tokens: Tensor) -> int:
    """How many windows of `[windows, length]` the backward pass sees."""
    return max(1, min(tokens.shape[0], FISHER_TOKENS // tokens.shape[1]))


def _loss(fisher: Tensor, rows: Tensor, folds: Sequence[int]) -> dict[str, float]:
    """Predicted loss and its standard error, from sums per fold `[folds, out]` and output change `[out]`."""
    windows = torch.tensor(folds, dtype=torch.float64)
    parts = 0.5 * (fisher.double() @ rows.double()) / windows  # [folds]
    mean = float((parts * windows).sum() / windows.sum())
    if len(folds) < 2:
        return {"predicted_loss": mean, "stderr": math.nan}
    spread = float((((parts - mean) * windows).square().sum()).sqrt() / windows.sum())
    return {"predicted_loss": mean, "stderr": spread * math.sqrt(len(folds) / (len(folds) - 1))}


@timed("errors")
def _moved_rows(
    checkpoint: Checkpoint,
    stack: Stack,
    factor: InverseFactor,
    schemes: Sequence[Scheme],
    scale_search: str,
) -> dict[tuple[str, Scheme], tuple[Tensor, float]]:
    """Per linear and scheme: mean squared output change `[out]` after GPTQ, and its share of the energy."""
    weight = stacked_weight(checkpoint, stack, stack.hessian.device)
    # the Hessian is twice the mean outer product; a dead column changes no output
    variance = factor.conditional_variance / 2 * (factor.energy > 0)
    search = search_of(scale_search, factor.energy)
    energy = output_error(weight, stack.hessian) / 2
    result = {}
    for scheme in schemes:
        rounded = quantize_weight(weight, scheme, **search).dequantize()
        rows = ((weight - rounded).square() * variance[:, None, :]).sum(-1)  # [n, out]
        share = rows.sum(-1) / energy.clamp(min=torch.finfo(torch.float32).tiny)
        for spec, *found in zip(stack.specs, rows.cpu(), share.tolist(), strict=True):
            result[spec.name, scheme] = (found[0], found[1])
    return result


@timed("backward")
def _fisher(
    model: BlockModel,
    last: Iterable[Tensor],
    inputs: Sequence[HiddenStates],
    folds: Sequence[int],
    seed: int,
) -> dict[str, Tensor]:
    """Squared output gradients summed over each fold, per token of a window, `{linear: [folds, out]}`."""
    checkpoint, head = model.checkpoint, model.head()
    gradients, window = [], 0
    fold_of = [fold for fold, size in enumerate(folds) for _ in range(size)]
    place: list[int] = []  # the fold of each batch
    for batch in last:
        gradients.append(_head_gradient(model, head, batch, seed + window))
        place.append(fold_of[window])
        window += batch.shape[0]
    del head
    length = gradients[0].shape[1]
    fisher: dict[str, Tensor] = {}
    for index in track(reversed(range(checkpoint.blocks)), "block backward", checkpoint.blocks):
        block = model.block(index, narrow=True)
        specs = checkpoint.block_specs(index)
        fisher |= {spec.name: torch.zeros(len(folds), spec.rows) for spec in specs}
        with output_gradients(model, block, index, specs) as sums:
            for i, batch in enumerate(inputs[index]):
                start = batch.to(model.device).requires_grad_(True)
                with torch.enable_grad(), model.products_for(start):
                    out = model.run(block, index, start)
                    (gradients[i],) = torch.autograd.grad(out, start, gradients[i])
                for name, total in sums.items():
                    fisher[name][place[i]] += (total / length).cpu()
                    total.zero_()
        inputs[index].clear()
        del block
        give_back()
    return fisher


def _folds(windows: int) -> list[int]:
    """Windows in each fold, in order, as even as can be."""
    count = min(FOLDS, windows)
    return [windows * (k + 1) // count - windows * k // count for k in range(count)]


def _cut(batches: Iterable[Tensor], folds: Sequence[int]) -> Iterator[Tensor]:
    """The windows of all folds in batches, none of which reaches over the end of a fold."""
    coming = iter(batches)
    rest: Tensor | None = None
    for size in folds:
        missing = size
        while missing:
            batch = next(coming) if rest is None else rest
            rest = batch[missing:] if batch.shape[0] > missing else None
            part = batch[:missing]
            missing -= part.shape[0]
            # a view would hold the whole batch
            yield part if len(part) == len(batch) else part.clone()


def _head_gradient(model: BlockModel, head: nn.Module, batch: Tensor, seed: int) -> Tensor:
    """Gradient at the last block's output of the loss on labels drawn from the model itself.

    Every window draws with a seed of its own, so that the size of batches decides nothing.
    """
    gradients = []
    for number, window in enumerate(batch):
        generator = torch.Generator().manual_seed(seed + number)
        hidden = window.detach().to(model.device).requires_grad_(True)
        with torch.enable_grad(), passes_of(len(window), hidden):
            log_p = torch.log_softmax(head(model.final_norm(hidden)).float(), -1)
            labels = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            loss = -log_p.gather(1, labels.to(log_p.device)).sum()
            gradients.append(torch.autograd.grad(loss, hidden)[0])
    return torch.stack(gradients)
