"""The output projection: the largest matrix of a model, solved some rows at a time behind its last block.

Rows are independent of each other given the Hessian, so the parts are what the whole would be; only nvfp4
and nf4, which have one scale for the whole matrix, are solved whole.
"""

from __future__ import annotations

import torch

from alphaquant.algorithms.solve_block import SolvedBlock, error_rows, error_table, sums
from alphaquant.algorithms.solve_stack import solve_weight
from alphaquant.algorithms.stacks import Stack
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.linalg.hessian import HessianAccumulator, inverse_factor
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.linear import LinearSpec

_PART = 1 << 26
"""Weights of one part: 256 MiB in fp32, of which a handful of copies exist."""


def solve_head(
    checkpoint: Checkpoint,
    spec: LinearSpec,
    scheme: Scheme,
    observed: HessianAccumulator,
    device: torch.device,
    config: QuantizationConfig,
    part: float = _PART,
) -> SolvedBlock:
    """Quantize the head, tied or not, against the Hessian of what reaches it; `part` weights or fewer at a time, and at least a row."""
    with timed("load weights"):
        stored = finite(checkpoint.head_weight(), f"{spec.name}.weight")
    stack = Stack([spec], observed.hessian[None], [observed.tokens])
    factor = inverse_factor(stack.hessian, config.damping, by_energy=config.factors_by_energy)
    rows = (
        spec.rows
        if scheme.number_format.kind == "nv"
        else max(1, int(min(part, _PART) // spec.cols))
    )
    done: list[QuantizedWeight] = []
    found = torch.zeros(1, 5, dtype=torch.float64)
    for chunk in stored.split(rows):
        weight = chunk.to(device).float()[None]
        solved = solve_weight(weight, factor, stack, scheme, config)
        found += sums(solved, solved.quantized).double().cpu()
        done.append(solved.quantized[0].to(torch.device("cpu")))
    table = error_table(error_rows(stack, scheme, found, factor.damping))
    return SolvedBlock({spec.name: QuantizedWeight.of_rows(done)}, table, None)
