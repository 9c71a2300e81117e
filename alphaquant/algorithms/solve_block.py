"""One decoder block: solve its stacks of linears, tune them together if asked, and say what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from alphaquant.algorithms.awq import ScaledBlock, scale_block
from alphaquant.algorithms.block_order import Observe, solve_in_order
from alphaquant.algorithms.lesson import Lesson
from alphaquant.algorithms.solve_stack import Solved, solve_stacks
from alphaquant.algorithms.stacks import AtOnce, Stack, sharing_stacks
from alphaquant.algorithms.tune_block import Start, Tuning, tune_block
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, expand, fake_quantize
from alphaquant.linalg.hessian import HessianAccumulator, near_output_error, output_error
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import all_cores
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan
from alphaquant.resident import give_back_much


@dataclass(frozen=True)
class SolvedBlock:
    """Everything that is kept of a block."""

    weights: dict[str, QuantizedWeight]
    """By linear; those that the plan quantizes."""
    errors: pd.DataFrame
    """One row per quantized linear."""
    tuning: Tuning | None
    """What tuning brought; None when the block was not tuned."""
    moved: dict[str, Tensor] = field(default_factory=dict)
    """Norms and kept linears that are not as the checkpoint has them, by name in its dtype."""


def solve_block(
    checkpoint: Checkpoint,
    specs: Sequence[LinearSpec],
    plan: QuantPlan,
    observed: Mapping[str, HessianAccumulator] | Observe,
    device: torch.device,
    config: QuantizationConfig,
    lesson: Lesson | None = None,
    at_once: AtOnce | None = None,
) -> SolvedBlock:
    """Quantize a block's linears by the plan, in order where who observes them is asked for that, and tune them when there is a `lesson`.

    `at_once` says how many experts of a shape are solved together at most.
    """
    scaled = None
    if config.method == "awq" and specs and specs[0].block is not None:
        assert isinstance(observed, Mapping), "scales are folded into what has been solved already"
        scaled = scale_block(checkpoint, specs[0].block, plan, observed, config, device, at_once)
    moved = scaled.moved(plan) if scaled else {}
    done = _Done()
    to_tune: list[Solved] = []
    with all_cores(max((spec.cols for spec in specs), default=0)):
        if not isinstance(observed, Mapping):
            solved = solve_in_order(checkpoint, specs, plan, observed, device, config, at_once)
        else:
            seen = sharing_stacks(specs, observed, config.expert_shrinkage, plan.schemes, at_once)
            solved = _solve_as_seen(seen, scaled or checkpoint, plan, device, config)
        for one in solved:
            if lesson is None or config.tune == "none":
                done.add(one, one.quantized)
            else:
                to_tune.append(one)
            del one  # or it would be in memory while the next stacks are made
    tuning = None
    if lesson is not None and to_tune:
        starts = []
        for one in to_tune:
            assert one.compensated is not None, "refinement was told that nobody tunes"
            names = [spec.name for spec in one.stack.specs]
            starts.append(Start(names, one.quantized, one.compensated))
        weights, tuning = tune_block(_within(moved, lesson), starts, config)
        for one, weight in zip(to_tune, weights, strict=True):
            done.add(one, weight)
    # in the order of the block, however it was split into stacks
    names = [spec.name for spec in specs if spec.name in done.weights]
    ordered = {name: done.weights[name] for name in names}
    rows = sorted(done.rows, key=lambda row: names.index(row["linear"]))
    return SolvedBlock(ordered, error_table(rows), tuning, moved)


def _solve_as_seen(
    seen: Iterator[list[Stack]],
    weights: Checkpoint | ScaledBlock,
    plan: QuantPlan,
    device: torch.device,
    config: QuantizationConfig,
) -> Iterator[Solved]:
    """Stacks against the Hessians that were observed before any of them was solved."""
    for sharing in seen:
        groups: Iterable[list[Stack]] = [sharing]
        if isinstance(weights, ScaledBlock):  # scaled inputs have Hessians of their own
            groups = ([weights.stack(stack)] for stack in sharing)
        for group in groups:
            yield from solve_stacks(weights, group, plan.schemes, device, config)
        del sharing, groups, group
        give_back_much()


@dataclass(frozen=True)
class _Done:
    """What is kept of solved stacks: codes and scales on the CPU, and rows of errors; all else may go."""

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, solved: Solved, quantized: QuantizedWeight) -> None:
        """Take a stack with the codes that it ended up with."""
        found = sums(solved, quantized)
        self.rows.extend(error_rows(solved.stack, solved.scheme, found, solved.damping))
        kept = quantized.to_host()
        self.weights.update({spec.name: kept[at] for at, spec in enumerate(solved.stack.specs)})


def _within(moved: Mapping[str, Tensor], lesson: Lesson) -> Lesson:
    """The lesson of a block with `moved` norms and linears."""
    if not moved:
        return lesson
    device = lesson.inputs.device
    there = {name: value.to(device) for name, value in moved.items()}
    return replace(lesson, run=lambda weights, hidden: lesson.run(there | dict(weights), hidden))


@timed("errors")
def sums(solved: Solved, quantized: QuantizedWeight) -> Tensor:
    """`[n, 5]`: energy of the outputs on the calibration inputs, what rounding to nearest with the very same
    scales would take of it, what was taken; energy of the weight, what was taken of that.
    """
    weight, hessian = solved.weight, solved.stack.hessian
    scale, zero = expand(quantized.scales, weight.shape[-1])
    rounded = fake_quantize(weight, scale, zero, solved.scheme.number_format)
    difference = weight - quantized.dequantize()
    return torch.stack(
        [
            near_output_error(weight, hessian),
            near_output_error(weight - rounded, hessian),
            output_error(difference, hessian),
            weight.square().sum((-2, -1)),
            difference.square().sum((-2, -1)),
        ],
        -1,
    )


def error_rows(
    stack: Stack, scheme: Scheme, found: Tensor, damping: Tensor
) -> list[dict[str, Any]]:
    """Rows of `errors.parquet` from the `sums` of a stack's weights: relative errors, `error_rtn` of rounding."""
    tiny = torch.finfo(torch.float32).tiny
    found, shares = found.cpu(), damping.tolist()  # one wait for the device, not one per number
    energy, rounded, error, square, difference = found.clamp(min=0).unbind(-1)
    before, after = rounded / energy.clamp(min=tiny), error / energy.clamp(min=tiny)
    plain = difference / square.clamp(min=tiny)
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
            "damping": shares[position],
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
