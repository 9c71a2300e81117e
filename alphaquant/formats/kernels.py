"""Kernels of our own, in Triton for a GPU and in C for a CPU: what they know of a format, and whether they serve.

What torch does is the reference for each, and takes its place where a kernel does not serve.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from alphaquant.errors import first_line
from alphaquant.formats.grid import code_table, codebook_borders
from alphaquant.formats.table import NumberFormat
from alphaquant.progress import reporter


def grid_constants(fmt: NumberFormat) -> dict[str, Any]:
    """The grid of `fmt`, as kernels know it."""
    kind = "codebook" if fmt.codebook else "int" if fmt.is_integer else "float"
    return {
        "KIND": kind,
        "LOW": float(fmt.min_value),
        "HIGH": float(fmt.max_value),
        "LOWEST": (fmt.min_exponent + 127) << 23 if kind == "float" else 0,
        "MANTISSA": fmt.mantissa_bits,
        "CODES": len(fmt.codebook or ()),
    }


@cache
def codebook_table(fmt: NumberFormat, device: torch.device) -> Tensor:
    """The elements of a codebook, and the borders between them."""
    return torch.cat([code_table(fmt, device), codebook_borders(fmt, device)])


def fused(x: Tensor) -> bool:
    """Whether kernels in Triton may take the place of torch's for `x`."""
    return x.is_cuda and _triton_loads()


@cache
def _triton_loads() -> bool:
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - what a build for another system raises is anybody's guess
        reporter().note(f"triton does not load ({first_line(error)}): torch does its work, slower")
        return False
    return True


_tried: set[tuple[Any, ...]] = set()
_broken: set[torch.device] = set()


def trusted(device: torch.device, variant: tuple[Any, ...], agrees: Callable[[], bool]) -> bool:
    """Whether a kernel serves on a device; `agrees` compiles a variant of it and holds it against torch, once.

    Where it cannot be compiled, for want of a C compiler say, or is wrong, the user is told, and no kernel of ours
    is tried again on that device.
    """
    if device in _broken:
        return False
    if (device, *variant) in _tried:
        return True
    try:
        works, found = agrees(), "its values are not those of torch"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - compilers, drivers and triton share no base class
        works, found = False, f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if works:
        _tried.add((device, *variant))
    else:
        _broken.add(device)
        reporter().note(
            f"the fused kernels do not run on {device} ({variant[0]}: {found}); torch's take their place, with the same "
            f"results, several times slower{_advice(device)}"
        )
    return works


def _advice(device: torch.device) -> str:
    """What else kernels for a device need than what the error says."""
    return ": triton needs a C compiler and a GPU that it knows" if device.type == "cuda" else ""
