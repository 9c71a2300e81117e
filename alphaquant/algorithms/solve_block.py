"""One decoder block: solve its stacks of linears, tune them together if asked, and say what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.stacks import Stack, stacks
from alphaquant.algorithms.tune_block import RunBlock, Start, Tuning, tune_block
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, expand, fake_quantize
from alphaquant.linalg.hessian import (
    HessianAccumulator,
    InverseFactor,
    inverse_factor,
    output_error,
)
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan


@dataclass(frozen=True)
class Lesson:
    """What tuning learns from: the block, what reaches it, and what it should answer."""

    run: RunBlock
    inputs: Tensor  # [windows, length, hidden]
    targets: Tensor  # [windows, length, hidden]


@dataclass(frozen=True)
class _Solved:
    stack: Stack
    scheme: Scheme
    weight: Tensor  # [n, out, in]
    factor: InverseFactor
    quantized: QuantizedWeight
    compensated: Tensor  # [n, out, in]


@dataclass(frozen=True)
class SolvedBlock:
    """Everything that is kept of a block."""

    weights: dict[str, QuantizedWeight]
    """By linear; those that the plan quantizes."""
    errors: pd.DataFrame
    """One row per quantized linear."""
    tuning: Tuning | None
    """What tuning brought; None when the block was not tuned."""


def solve_block(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observed: Mapping[str, HessianAccumulator],
    device: torch.device,
    config: QuantizationConfig,
    lesson: Lesson | None = None,
) -> SolvedBlock:
    """Quantize a block's linears by the plan, and tune them when there is a `lesson`."""
    solved = [
        _solve(checkpoint, stack, scheme, device, config)
        for stack in stacks(specs, observed, config.expert_shrinkage, plan.schemes)
        if (scheme := plan.schemes[stack.specs[0].name]).format != "bf16"
    ]
    weights, tuning = [one.quantized for one in solved], None
    if lesson is not None and solved:
        starts = [
            Start([spec.name for spec in s.stack.specs], s.quantized, s.compensated) for s in solved
        ]
        weights, tuning = tune_block(
            lesson.run, starts, lesson.inputs, lesson.targets, config, device
        )
    pairs = list(zip(solved, weights, strict=True))
    done = {
        spec.name: weight[position]
        for one, weight in pairs
        for position, spec in enumerate(one.stack.specs)
    }
    ordered = {spec.name: done[spec.name] for spec in specs if spec.name in done}
    rows = [row for one, weight in pairs for row in _errors(one, weight)]
    return SolvedBlock(ordered, error_table(rows), tuning)


def _solve(
    checkpoint: Checkpoint,
    stack: Stack,
    scheme: Scheme,
    device: torch.device,
    config: QuantizationConfig,
) -> _Solved:
    weight = torch.stack(
        [finite(checkpoint.weight(spec.name), spec.name).to(device).float() for spec in stack.specs]
    )
    factor = inverse_factor(stack.hessian, config.damping)
    if config.method == "rtn":
        quantized = rtn(weight, scheme, config.scale_search, stack.specs[0].name)
        return _Solved(stack, scheme, weight, factor, quantized, weight)
    options = GptqOptions(
        config.block_size, config.act_order, config.static_groups, config.scale_search
    )
    found = gptq(weight, factor, scheme, options)
    if not (config.refit or config.sweeps):
        return _Solved(stack, scheme, weight, factor, found.weight, found.compensated)
    refined, wanted = refine(
        weight, factor.damped, found.weight, sweeps=config.sweeps, refit=config.refit
    )
    return _Solved(stack, scheme, weight, factor, refined, wanted)


def _errors(solved: _Solved, quantized: QuantizedWeight) -> list[dict[str, Any]]:
    """Output errors on the calibration inputs, relative to the output's energy.

    `error_rtn` is that of rounding to nearest with the very same scales.
    """
    weight, stack, scheme = solved.weight, solved.stack, solved.scheme
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
            "damping": float(solved.factor.damping[position]),
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
