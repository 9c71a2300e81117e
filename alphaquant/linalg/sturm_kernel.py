"""Eigenvalues of tridiagonal matrices on a GPU: every one is bracketed on its own, by counting (Givens, 1954).

The number of negative pivots of T - x is that of eigenvalues below x. Only a GPU runs this, and nothing else imports
it: triton comes with CUDA builds of torch, and the package does not need it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from alphaquant.formats.kernels import trusted
from alphaquant.linalg.recorded import reductions

LANES, WARPS = 128, 4
"""Eigenvalues of a program, and the warps that share them."""
_HALVINGS = 48
"""Of a bracket as wide as the spectrum: what is left is below 1e-14 of it."""
_TINY = tl.constexpr(1e-290)


@triton.jit(do_not_specialize=["size", "halvings"])
def _bisect(diagonal, squares, ends, found, size, halvings, LANES: tl.constexpr):
    """`diagonal` and `squares` are `[batch, size]` in fp64; `squares` of what is above, the first is zero."""
    matrix = tl.program_id(1).to(tl.int64)
    wanted = tl.program_id(0) * LANES + tl.arange(0, LANES)
    diagonal += matrix * size
    squares += matrix * size
    low = tl.zeros([LANES], tl.float64) + tl.load(ends + 2 * matrix)
    high = tl.zeros([LANES], tl.float64) + tl.load(ends + 2 * matrix + 1)
    for _ in range(halvings):
        middle = (low + high) * 0.5
        below = tl.zeros([LANES], tl.int32)
        pivot = tl.zeros([LANES], tl.float64) + 1.0
        for at in range(size):
            pivot = tl.load(diagonal + at) - middle - tl.load(squares + at) / pivot
            pivot = tl.where(tl.abs(pivot) < _TINY, -_TINY, pivot)
            below += (pivot < 0).to(tl.int32)
        high = tl.where(below > wanted, middle, high)
        low = tl.where(below > wanted, low, middle)
    tl.store(found + matrix * size + wanted, (low + high) * 0.5, mask=wanted < size)


def tridiagonal_eigenvalues(
    diagonal: Tensor,  # [batch, n]
    beside: Tensor,  # [batch, n - 1]
) -> Tensor:
    """Eigenvalues `[batch, n]`, ascending, in float64."""
    batch, size = diagonal.shape
    centre, edge = diagonal.double().contiguous(), beside.double().abs()
    before = torch.nn.functional.pad(edge, (1, 0))
    reach = before + torch.nn.functional.pad(edge, (0, 1))  # Gershgorin's circles
    ends = torch.stack([(centre - reach).amin(-1), (centre + reach).amax(-1)], -1).contiguous()
    squares = before.square().contiguous()
    found = torch.empty_like(centre)
    with torch.cuda.device_of(centre):
        _bisect[(triton.cdiv(size, LANES), batch)](
            *(centre, squares, ends, found, size, _HALVINGS), LANES=LANES, num_warps=WARPS
        )
    return found


def eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues `[batch, n]`, ascending, in float64, of symmetric `[batch, n, n]`, which are overwritten."""
    return tridiagonal_eigenvalues(*reductions(matrices))


def runs(device: torch.device) -> bool:
    """Whether the kernel serves on a device."""
    return trusted(device, ("spectra",), lambda: _agrees(device))


def _agrees(device: torch.device) -> bool:
    """Whether a few small spectra are those of torch on a CPU."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(5, 70, 70, generator=generator) / 8
    symmetric = square + square.mT
    expected = torch.linalg.eigvalsh(symmetric.double())
    found = eigenvalues(symmetric.to(device)).cpu()
    return bool((found - expected).abs().max() < 1e-5 * expected.abs().max())
