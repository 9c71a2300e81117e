"""XᵀX and XᵀY of bf16 inputs in C (`gram.c`), on CPUs that multiply pairs of bf16: torch has no such product with sums in fp32."""

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
"""Columns of a panel."""
_LEAST = 1 << 22
"""Products of pairs that repay another thread."""


class _Packing(ctypes.Structure):
    """`struct packing` of gram.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "cols", "stride", "pairs")),
        *((name, ctypes.c_void_p) for name in ("x", "packed")),
    )


class _Product(ctypes.Structure):
    """`struct product` of gram.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("pairs", "rows", "cols", "stride")),
        *((name, ctypes.c_void_p) for name in ("left", "right", "total", "found")),
    )


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add XᵀX of `x` `[tokens, cols]` in bf16 to `total` `[cols, cols]` in fp32; what is below its diagonal waits for `mirror`."""
    packed = _packed(x)
    _run("add_gram", _pairs(len(packed)), packed, packed, total)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ `[n, tokens]` times `right` `[tokens, m]`, both in bf16, to `total` `[n, m]` in fp32."""
    one, other = _packed(left), _packed(right)
    _run("add_product", len(one) * len(other), one, other, total)


def quadratic(x: Tensor, total: Tensor) -> float:
    """The sum of XᵀX of `x` `[rows, cols]` in bf16 times a symmetric `total` `[cols, cols]` in fp32: of xᵀHx over all rows."""
    packed = _packed(x)
    found = torch.empty(_pairs(len(packed)), dtype=torch.float64)
    _run("multiply_gram", len(found), packed, packed, total, found)
    return float(found.sum())


def _pairs(panels: int) -> int:
    """Pairs of panels on and above the diagonal."""
    return panels * (panels + 1) // 2


def _packed(x: Tensor) -> Tensor:
    """Inputs `[tokens, cols]` as C multiplies them `[panels, pairs, PANEL]`."""
    tokens, cols = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    packed = torch.empty(-(-cols // _PANEL), -(-tokens // 2), _PANEL, dtype=torch.int32)
    places = address(x, torch.bfloat16), address(packed, torch.int32)
    given = _Packing(tokens, cols, x.stride(0), packed.shape[1], *places)
    _spread("pack", given, len(packed), packed)
    return packed


def _run(
    name: str, items: int, left: Tensor, right: Tensor, total: Tensor, found: Tensor | None = None
) -> None:
    panels = [-(-size // _PANEL) for size in total.shape]
    if left.shape[1] != right.shape[1] or panels != [len(left), len(right)]:
        raise ValueError(f"what is multiplied has no product of {list(total.shape)}")
    if total.stride(1) != 1:
        raise ValueError("the total must lie row by row")
    packed = (address(x, torch.int32) for x in (left, right))
    places = (*packed, address(total), address(found, torch.float64))
    _spread(name, _Product(left.shape[1], *total.shape, total.stride(0), *places), items, left)


def _spread(name: str, given: ctypes.Structure, items: int, packed: Tensor) -> None:
    least = max(1, _LEAST // max(1, packed.shape[1] * _PANEL * _PANEL))
    spread(getattr(_library(), name), ctypes.byref(given), items, least)


def _library() -> ctypes.CDLL:
    return library(_SOURCE, PANEL=_PANEL)


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
    return hasattr(_library(), "add_gram")


def _agrees() -> bool:
    """Whether a small sum is that of fp32 products, which are exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(75, 70, generator=generator, dtype=torch.float32).bfloat16()
    found = torch.zeros(70, 70, dtype=torch.float32)
    add_gram(found, x)
    expected = x.float().T @ x.float()
    return torch.allclose(found.triu(), expected.triu(), rtol=1e-5, atol=1e-4)
