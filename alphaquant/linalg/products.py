"""Products of fp32 matrices: which of torch's two libraries computes them on a CPU, and products taken from what is there.

torch hands fp32 to MKL, which has no AVX-512 for AMD's CPUs; oneDNN has, and gets fp32 only where it may round it to bf16.
It does that where there are AMX units to gain by it. Elsewhere it multiplies in fp32, twice as fast as MKL on such a CPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

_EVEN = 32  # of whose multiples there are few numbers of tokens
_ROWS = 1024  # of whose multiples there are few numbers of tokens in a sum
_WIDE = 128  # hidden states from which passes gain by it
_PIECE = 512  # rows of a product that is taken away: oneDNN keeps .6 MB of code for every shape
_DEEP = 64  # columns of what is multiplied from which that repays


@contextlib.contextmanager
def bf16_products() -> Iterator[None]:
    """While open, a CPU multiplies fp32 matrices by oneDNN with fp32 sums, as bf16 where it has AMX units: exact where numbers are bf16.

    torch has no product of bf16 with sums in fp32 on a CPU, and this switch is one for the process: no other thread
    may multiply other numbers meanwhile. Stages that compute take turns on a machine.
    """
    _switch.turn_on()
    try:
        yield
    finally:
        _switch.turn_off()


class _Switch:
    """torch's leave to round fp32 in products of oneDNN, given while any thread wants it."""

    def __init__(self) -> None:
        self._lock, self._wanted, self._before = threading.Lock(), 0, ""

    def turn_on(self) -> None:
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            if not self._wanted:
                self._before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
            self._wanted += 1

    def turn_off(self) -> None:
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                matmul.fp32_precision = self._before


_switch = _Switch()


def quick_products() -> contextlib.AbstractContextManager[None]:
    """While open, a CPU multiplies any fp32 matrices by the faster library, as exactly: for few shapes, as each is compiled."""
    return bf16_products() if onednn_is_faster() else contextlib.nullcontext()


def passes_of(tokens: int, like: Tensor) -> contextlib.AbstractContextManager[None]:
    """`quick_products` for passes of so many tokens `like` these `[..., hidden]`, where few passes have another number and it repays."""
    wide = like.dtype == torch.float32 and not like.is_cuda and like.shape[-1] >= _WIDE
    return quick_products() if wide and tokens % _EVEN == 0 else contextlib.nullcontext()


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies fp32 on this CPU as fp32, and by wider instructions than MKL."""
    if not torch.backends.mkldnn.is_available():
        return False
    able = capabilities()
    rounds = any(name.startswith("amx_") and has for name, has in able.items())
    wide = bool(able.get("avx512_bf16"))
    return wide and not rounds and "AMD" in str(able.get("cpu_name"))


@cache
def capabilities() -> Mapping[str, Any]:
    """What torch knows of the CPU; nothing before 2.13."""
    try:
        return torch.cpu.get_capabilities()
    except AttributeError:
        return {}


def take_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Take `left` `[..., n, k]` times `right` `[..., k, m]` from `target` `[..., n, m]`, which may be part of a larger tensor."""
    if target.is_cuda or left.shape[-1] < _DEEP or not onednn_is_faster():
        _take(target, left, right)
        return
    with quick_products():
        for start in range(0, target.shape[-2], _PIECE):
            rows = slice(start, start + _PIECE)
            _take(target[..., rows, :], left[..., rows, :], right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ `[n, tokens]` times `right` `[tokens, m]`, fp32, to `total` `[n, m]`."""
    even = even_rows(len(left)) if not left.is_cuda and onednn_is_faster() else 0
    if even:
        with quick_products():
            total.addmm_(left[:even].T, right[:even])
    if even < len(left):
        total.addmm_(left[even:].T, right[even:])


def even_rows(rows: int) -> int:
    """As many of so many rows as oneDNN may multiply: it compiles for every number of rows, and experts get hundreds of numbers."""
    return rows // _ROWS * _ROWS


def _take(target: Tensor, left: Tensor, right: Tensor) -> None:
    if target.dim() == 2:
        target.addmm_(left, right, alpha=-1)
    elif target.dim() == 3:
        target.baddbmm_(left, right, alpha=-1)
    else:
        target -= left @ right
