"""XᵀX of bf16 inputs in C (`gram.c`), on CPUs that multiply pairs of bf16: torch has no such product with sums in fp32."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.formats.kernels import trusted
from alphaquant.in_c import address, library, spread
from alphaquant.linalg.products import capabilities

_SOURCE = Path(__file__).with_name("gram.c")
_PANEL = 32
"""Columns of a panel, as in gram.c."""
_LEAST = 1 << 22
"""Products of pairs that repay another thread."""


class _Gram(ctypes.Structure):
    """`struct gram` of gram.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "cols", "stride", "pairs", "total_stride")),
        *((name, ctypes.c_void_p) for name in ("x", "packed", "total", "found")),
    )


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add XᵀX of `x` `[tokens, cols]` in bf16 to `total` `[cols, cols]` in fp32; what is below its diagonal waits for `mirror`."""
    _run("add_gram", total, x)


def quadratic(x: Tensor, total: Tensor) -> float:
    """The sum of XᵀX of `x` `[rows, cols]` in bf16 times a symmetric `total` `[cols, cols]` in fp32: of xᵀHx over all rows."""
    panels = -(-x.shape[1] // _PANEL)
    found = torch.empty(panels * (panels + 1) // 2, dtype=torch.float64)
    _run("multiply_gram", total, x, found)
    return float(found.sum())


def _run(name: str, total: Tensor, x: Tensor, found: Tensor | None = None) -> None:
    tokens, cols = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    pairs, panels = -(-tokens // 2), -(-cols // _PANEL)
    packed = torch.empty(panels, pairs, _PANEL, dtype=torch.int32)
    sizes = (tokens, cols, x.stride(0), pairs, total.stride(0))
    given = ctypes.byref(_Gram(*sizes, *map(address, (x, packed, total, found))))
    functions = library(_SOURCE)
    least = max(1, _LEAST // max(1, pairs * _PANEL * _PANEL))
    spread(functions.pack, given, panels, least)
    spread(getattr(functions, name), given, panels * (panels + 1) // 2, least)


def runs() -> bool:
    """Whether it serves on this CPU: units for whole matrices (AMX), which libraries use, are faster yet."""
    able = capabilities()
    if not able.get("avx512_bf16") or able.get("amx_bf16"):
        return False
    return (
        trusted(torch.device("cpu"), ("Hessians",), lambda: not _there() or _agrees()) and _there()
    )


def _there() -> bool:
    """Whether the compiler knew such products."""
    return hasattr(library(_SOURCE), "add_gram")


def _agrees() -> bool:
    """Whether a small sum is that of fp32 products, which are exact."""
    x = torch.randn(75, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = torch.zeros(70, 70)
    add_gram(found, x)
    expected = x.float().T @ x.float()
    return torch.allclose(found.triu(), expected.triu(), rtol=1e-5, atol=1e-4)
