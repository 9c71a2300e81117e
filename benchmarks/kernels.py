"""Our kernels on a device: against torch's in codes, loss and seconds, and how long a launch takes by its tile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alphaquant.algorithms import column_walk
from alphaquant.algorithms import refine as refinement
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.gptq import gptq
from alphaquant.algorithms.refine import refine
from alphaquant.formats import choice
from alphaquant.formats.scheme import Scheme
from alphaquant.linalg.hessian import inverse_factor, output_error

FORMATS = ("int2-g128", "int4-g128", "int4-g32-asym", "fp6-g128", "mxfp4", "nvfp4", "nf4")
_TILES = ((32, 1), (32, 2), (32, 4), (64, 4), (128, 4), (16, 4))


@contextlib.contextmanager
def launch_by_launch() -> Iterator[None]:
    """While open, no kernel of ours takes the place of torch's."""
    with (
        mock.patch.object(column_walk, "_serves", return_value=False),
        mock.patch.object(choice, "_kernel", return_value=None),
        mock.patch.object(refinement, "_serves_in_c", return_value=False),
    ):
        yield


def compare_kernel(
    text: str, device: torch.device, matrices: int = 16, size: int = 1024
) -> dict[str, Any]:
    """GPTQ and refinement of matrices with and without our kernels: seconds, codes, loss."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(matrices, size // 2, size, generator=generator).to(device)
    mix = torch.randn(size, size, generator=generator) / size**0.5
    x = (torch.randn(matrices, 2 * size, size, generator=generator) @ mix).to(device)
    factor = inverse_factor(x.mT @ x / size)

    def solve() -> tuple[float, Tensor, Tensor]:
        seconds = []
        for _ in range(2):  # the first call compiles
            _wait(device)
            began = time.perf_counter()
            start = gptq(weight, factor, Scheme.parse(text))
            found, _ = refine(weight, factor.damped, start, sweeps=2)
            _wait(device)
            seconds.append(time.perf_counter() - began)
        loss = output_error(weight - found.dequantize(), factor.damped)
        return seconds[-1], found.codes, loss

    with_kernel = solve()
    with launch_by_launch():
        without = solve()
    return {
        "format": text,
        "kernel": with_kernel[0],
        "torch": without[0],
        "same_codes": float((with_kernel[1] == without[1]).float().mean()),
        "loss_ratio": float((with_kernel[2] / without[2]).mean()),
    }


def tile_seconds(device: torch.device) -> list[dict[str, Any]]:
    """Seconds of one launch by rows and warps of a program, for one large matrix and for many experts."""
    from alphaquant.algorithms import column_kernel

    found = []
    for batch, out in ((1, 4096), (64, 1024)):
        local = torch.randn(batch, column_kernel.TILE, out, device=device)
        coupling = torch.randn(batch, column_kernel.TILE, column_kernel.TILE, device=device) / 16
        scale = torch.full_like(local[..., :1, :], 0.25)
        inverse = torch.ones_like(local[..., 0])
        group = torch.zeros_like(inverse, dtype=torch.int64)
        rounding = Rounding(Scheme("int4").number_format, scale, None, group, inverse)
        values, steps = torch.empty_like(local), torch.empty_like(local)
        for rows, warps in _TILES:
            seconds = []
            for _ in range(4):
                _wait(device)
                began = time.perf_counter()
                column_kernel.walk_tile(local, coupling, rounding, values, steps, rows, warps)
                _wait(device)
                seconds.append(time.perf_counter() - began)
            found.append(
                {"batch": batch, "out": out, "rows": rows, "warps": warps, "s": min(seconds)}
            )
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
