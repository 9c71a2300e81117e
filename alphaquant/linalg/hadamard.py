"""Orthogonal matrices that spread every coordinate evenly over all others: signs times a Hadamard matrix.

x Q with Q = D H / sqrt(n): D holds random signs, H is a Kronecker product of small Hadamard matrices, so
that applying Q to a vector costs n times the sum of their sizes. Powers of two come from Sylvester's
construction, other sizes from Paley's; where neither exists, Q is a random orthogonal matrix.
"""

from __future__ import annotations

import functools
import math
import random

import torch
from torch import Tensor

from alphaquant.linalg.paley import paley, paley_field

_LARGEST_SYLVESTER = 64
"""Larger powers of two are split: one multiplication by a wide factor is quick, a very wide one is not."""
_CHUNK = 1 << 24
"""Values that are rotated at a time, 128 MiB in fp64."""


class Rotation:
    """A seeded orthogonal matrix `[size, size]`, block-diagonal when `block` is smaller than `size`.

    `index` tells matrices of one seed apart. Raises ValueError when `block` does not divide `size`.
    """

    def __init__(self, size: int, *, block: int | None = None, seed: int = 0, index: int = 0):
        self.size = size
        self.block = block or size
        if size % self.block:
            raise ValueError(f"blocks of {self.block} do not divide {size}")
        generator = torch.Generator().manual_seed(random.Random(f"{seed}.{index}").getrandbits(63))
        self._factors = hadamard_factors(self.block)
        self.is_hadamard = self._factors is not None
        """Whether all entries of a block have one magnitude."""
        self._signs = 2.0 * torch.randint(0, 2, (size,), generator=generator).double() - 1.0
        if self._factors is None:
            self._factors = (_random_orthogonal(self.block, generator),)
        else:
            self._signs /= math.sqrt(self.block)

    def apply(
        self, x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """x Q for vectors `[..., size]` on the CPU, computed in fp64; `scale` `[size]` multiplies them first.

        A vector that is several times as long, such as one of all heads, is turned part by part.
        """
        out = torch.empty(x.shape, dtype=dtype)
        flat, flat_out = x.reshape(-1, self.size), out.view(-1, self.size)
        before = self._signs if scale is None else self._signs * scale.double()
        rows = max(1, _CHUNK // self.size)
        for start in range(0, flat.shape[0], rows):
            chunk = flat[start : start + rows].double() * before
            flat_out[start : start + rows] = self._mix(chunk).view(-1, self.size)
        return out

    def apply_left(self, w: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Qᵀ w for a matrix `[size, columns]` on the CPU, computed in fp64; parts of more rows one by one."""
        out = torch.empty(w.shape, dtype=dtype)
        columns = max(1, _CHUNK // w.shape[0])
        for start in range(0, w.shape[1], columns):
            chunk = w[:, start : start + columns].double()
            parts = chunk.view(-1, self.size, chunk.shape[1]) * self._signs[:, None]
            out[:, start : start + columns] = self._mix(parts, chunk.shape[1]).view(chunk.shape)
        return out

    def matrix(self) -> Tensor:
        """Q itself `[size, size]`, in fp64."""
        return self.apply(torch.eye(self.size, dtype=torch.float64))

    def _mix(self, x: Tensor, columns: int = 1) -> Tensor:
        """Each factor in turn along its own axis of the Kronecker product; `columns` lie behind the last."""
        assert self._factors is not None
        behind = self.block * columns
        for factor in self._factors:
            behind //= len(factor)
            if behind > 1:
                x = factor.T @ x.reshape(-1, len(factor), behind)
            else:
                x = x.reshape(-1, len(factor)) @ factor
        return x


@functools.lru_cache(maxsize=64)
def hadamard_factors(n: int) -> tuple[Tensor, ...] | None:
    """Hadamard matrices of entries +1 and -1 whose Kronecker product has order n; None when n has none.

    At most one factor is Paley's, the smallest that leaves a power of two; the others are Sylvester's.
    """
    twos = (n & -n).bit_length() - 1 if n > 0 else 0
    for power in range(twos, -1, -1):
        core = n >> power
        if core == 1 or paley_field(core):
            return (() if core == 1 else (paley(core),)) + _sylvester_factors(power)
    return None


def _sylvester_factors(power: int) -> tuple[Tensor, ...]:
    """Sylvester matrices of equal sizes, as far as possible, whose product has order 2^power."""
    if power == 0:
        return ()
    count = math.ceil(power / math.log2(_LARGEST_SYLVESTER))
    powers = [power // count + (i < power % count) for i in range(count)]
    return tuple(_sylvester(p) for p in powers)


def _sylvester(power: int) -> Tensor:
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return functools.reduce(torch.kron, [two] * power, torch.ones(1, 1, dtype=torch.float64))


def _random_orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """A matrix drawn evenly from all orthogonal ones: QR of a Gaussian one, its diagonal made positive."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    orthogonal: Tensor = q * r.diagonal().sign()
    return orthogonal
