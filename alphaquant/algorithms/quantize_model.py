"""Quantize a model block by block: each block sees the inputs that the quantized blocks before it make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.quantized_block import block_weights, save_block
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.stacks import Stack, stacks
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, expand, fake_quantize
from alphaquant.linalg.hessian import (
    HessianAccumulator,
    InverseFactor,
    inverse_factor,
    output_error,
    white,
)
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.device import compute_dtype
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import run_and_collect
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter


class BlockCache(Protocol):
    """Finished blocks. A block's key covers everything before it, so a hit is safe to build on."""

    def get(self, index: int, ingredients: Any) -> Path | None:
        """The folder of block `index` if it was made from the same `ingredients`."""

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        """Keep what `write` puts into a folder; returns where it lies."""


class FreshBlocks:
    """A cache that finds nothing: every block is computed and kept in a folder under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, index: int, ingredients: Any) -> Path | None:
        """Never there."""
        return None

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        """Keep a block for as long as its folder is kept."""
        folder = self._root / str(index)
        folder.mkdir()
        write(folder)
        return folder


def quantize_blocks(
    checkpoint: Checkpoint,
    plan: QuantPlan,
    tokens: Tensor | None,  # [windows, length]
    config: QuantizationConfig,
    *,
    device: torch.device,
    batch_size: int,
    blocks: BlockCache,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Quantize every block by the plan; returns one folder per block, in order.

    Hidden states are handed on in memory. Where finished blocks are found, they are recomputed from
    those, only when a later block needs them. Method rtn works without `tokens`; its output errors are
    then those on white inputs.
    """
    if tokens is None and config.method != "rtn":
        raise ValueError(f"method {config.method} needs calibration tokens")
    walker = _Walker(checkpoint, tokens, device, dtype or compute_dtype(device), batch_size)
    folders: list[Path] = []
    for index in range(checkpoint.blocks):
        reporter().update("block", index, checkpoint.blocks)
        every = checkpoint.block_specs(index)
        specs = [spec for spec in every if plan.schemes[spec.name].format != "bf16"]
        ingredients = {spec.name: str(plan.schemes[spec.name]) for spec in specs}
        folder = blocks.get(index, ingredients)
        if folder is None:
            if any(spec.expert is not None for spec in specs):
                # kept experts count in the mean that the others are shrunk towards
                solved = [s for s in every if s in specs or s.expert is not None]
            else:
                solved = specs
            observed = walker.observe(index, solved, folders)
            weights, errors = _quantize_block(checkpoint, solved, plan, observed, device, config)
            folder = blocks.put(
                index,
                ingredients,
                lambda out, w=weights, e=errors: save_block(out, w, e),  # type: ignore[misc]
            )
        folders.append(folder)
    reporter().update("block", checkpoint.blocks, checkpoint.blocks)
    return folders


class _Walker:
    """Hidden states of the quantized model, advanced only as far as somebody asks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        self._checkpoint, self._tokens = checkpoint, tokens
        self._device, self._dtype, self._batch_size = device, dtype, batch_size
        self._model: BlockModel | None = None
        self._hidden: list[Tensor] = []
        self._next = 0

    def observe(
        self, index: int, specs: Sequence[LinearSpec], folders: Sequence[Path]
    ) -> Mapping[str, HessianAccumulator]:
        """Hessians of block `index` behind the finished blocks in `folders`, by input key."""
        if not specs:
            return {}
        if self._tokens is None:
            return {spec.input_key: white(spec.cols, self._device) for spec in specs}
        if self._model is None:  # not before a block has to be computed
            self._model = BlockModel(self._checkpoint, self._device, self._dtype)
            self._hidden = self._model.embed(self._tokens, self._batch_size)
        model = self._model
        while self._next < index:
            weights = block_weights(self._checkpoint, self._next, folders[self._next])
            block = model.block(self._next, weights)
            self._hidden = list(model.advance(block, self._next, self._hidden))
            self._next += 1
        return run_and_collect(model, model.block(index), index, specs, self._hidden)[0]


def _quantize_block(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observed: Mapping[str, HessianAccumulator],
    device: torch.device,
    config: QuantizationConfig,
) -> tuple[dict[str, QuantizedWeight], pd.DataFrame]:
    """Solve every stack of a block's linears."""
    done: dict[str, QuantizedWeight] = {}
    rows: list[dict[str, Any]] = []
    for stack in stacks(specs, observed, config.expert_shrinkage, plan.schemes):
        scheme = plan.schemes[stack.specs[0].name]
        if scheme.format == "bf16":
            continue
        weight = torch.stack(
            [
                finite(checkpoint.weight(spec.name), spec.name).to(device).float()
                for spec in stack.specs
            ]
        )
        factor = inverse_factor(stack.hessian, config.damping)
        quantized = _solve(weight, factor, stack, scheme, config)
        for position, spec in enumerate(stack.specs):
            done[spec.name] = quantized[position]
        rows += _errors(weight, quantized, factor, stack, scheme)
    return {s.name: done[s.name] for s in specs if s.name in done}, error_table(rows)


def _solve(
    weight: Tensor, factor: InverseFactor, stack: Stack, scheme: Scheme, config: QuantizationConfig
) -> QuantizedWeight:
    if config.method == "rtn":
        return rtn(weight, scheme, config.scale_search, stack.specs[0].name)
    options = GptqOptions(
        config.block_size, config.act_order, config.static_groups, config.scale_search
    )
    return gptq(weight, factor, scheme, options)[0]


def _errors(
    weight: Tensor,
    quantized: QuantizedWeight,
    factor: InverseFactor,
    stack: Stack,
    scheme: Scheme,
) -> list[dict[str, Any]]:
    """Output errors on the calibration inputs, relative to the output's energy.

    `error_rtn` is that of rounding to nearest with the very same scales.
    """
    hessian = stack.hessian
    scale, zero = expand(quantized.scales, weight.shape[-1])
    rounded = fake_quantize(weight, scale, zero, scheme.number_format)
    tiny = torch.finfo(torch.float32).tiny
    energy = output_error(weight, hessian).clamp(min=tiny)
    before = output_error(weight - rounded, hessian) / energy
    difference = weight - quantized.dequantize()
    after = output_error(difference, hessian) / energy
    plain = difference.square().sum((-2, -1)) / weight.square().sum((-2, -1)).clamp(min=tiny)
    return [
        {
            "linear": spec.name,
            "role": spec.role,
            "block": spec.block,
            "expert": spec.expert,
            "format": scheme.format,
            "bits_per_weight": scheme.bits_per_weight(spec.cols, rows=spec.rows),
            "tokens": stack.tokens[position],
            "error_rtn": float(before[position]),
            "error": float(after[position]),
            "weight_error": float(plain[position]),
            "damping": float(factor.damping[position]),
        }
        for position, spec in enumerate(stack.specs)
    ]


_COLUMNS = {
    "linear": "string",
    "role": "string",
    "block": "Int64",
    "expert": "Int64",
    "format": "string",
    "bits_per_weight": "float64",
    "tokens": "Int64",
    "error_rtn": "float64",
    "error": "float64",
    "weight_error": "float64",
    "damping": "float64",
}


def error_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Per-linear errors with the columns of `errors.parquet`, also when there are none."""
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
