"""Which device computes, and in which dtype the forward passes run there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from alphaquant.errors import ConfigError
from alphaquant.linalg.products import capabilities
from alphaquant.resident import resident, return_at_once

_SMALL_MODEL = 50_000_000
_WIDE = 512
"""Inputs of a linear from which a second core repays in solving it on a CPU, and bf16 in calibration."""
WIDE_IN_PASSES = 256
"""Hidden states from which a second core repays in passes of whole windows, and bf16 in those for gradients."""
_LIBRARIES = 100_000_000
"""Bytes that libraries take when they are first used."""
_SLACK = 16
"""One part in so many stays free: allocators and libraries take some."""
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def compute_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU without one. Raises ConfigError for what this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"execution.device {name!r} is not a device; allowed: auto, cpu, cuda, cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"execution.device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"execution.device {name!r} is not there: this machine has {torch.cuda.device_count()} "
            "CUDA devices. Use auto or cpu."
        )
    return device


def device_name(name: str) -> str:
    """`cpu`, or a GPU by its UUID: ordinals differ between processes that see other devices."""
    device = compute_device(name)
    if device.type == "cpu":
        return "cpu"
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def dtype_named(name: str) -> torch.dtype:
    """`bfloat16`, `bf16` or `torch.bfloat16` and the like. Raises ConfigError that lists what is known."""
    found = _DTYPES.get(name.removeprefix("torch."))
    if found is None:
        raise ConfigError(f"dtype {name!r} is not known; allowed: {', '.join(_DTYPES)}")
    return found


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where tensor cores multiply it, fp32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def calibration_dtype(device: torch.device, width: int) -> torch.dtype:
    """`compute_dtype`, or bf16 on a CPU that multiplies it, for models whose hidden states are wide enough.

    Rounding calibration inputs to the dtype that the model was stored in costs their Hessians nothing that
    matters, and others do the same; scores are computed in `compute_dtype`.
    """
    if device.type == "cpu" and width >= _WIDE and multiplies_bf16():
        return torch.bfloat16
    return compute_dtype(device)


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16; emulated they are slower than fp32."""
    able = capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be taken on a device; None where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return 1024 * int(kilobytes)


def free_within(limit: int | None, device: torch.device) -> int | None:
    """Bytes that may still be taken on a device, below a `limit` of the process if there is one; None where nobody knows."""
    free = free_memory(device)
    if limit is None:
        return free
    allowed = room_for(limit, device)
    return allowed if free is None else min(free, allowed)


def room_for(limit: int, device: torch.device) -> int:
    """Bytes that may still be taken on the device that computes when the process is to stay below `limit`.

    From here on freed memory goes back at once, since what the allocator keeps of it would count.
    """
    return_at_once()
    if device.type == "cpu":
        room = limit - (resident() or 0) - _LIBRARIES
    else:
        room = limit - torch.cuda.memory_allocated(device)
        if (free := free_memory(device)) is not None:
            room = min(room, free)
    return room - max(room, 0) // _SLACK


def suit_threads(parameters: int) -> None:
    """Let this thread's torch use one core for a small model, all for others.

    On matrices of a few hundred columns a second core takes a fifth off the demo model's run for a third more
    CPU seconds, and costs time where other programs want the cores.
    """
    small = parameters < _SMALL_MODEL
    torch.set_num_threads(1 if small else available_cores())


@contextlib.contextmanager
def all_cores(width: int = _WIDE, least: int = _WIDE) -> Iterator[None]:
    """While open, this thread's torch uses every core if its matrices are wide, whatever `suit_threads` says."""
    count = torch.get_num_threads()
    with torch_threads(max(count, available_cores()) if width >= least else count):
        yield


def training_products(hidden: Tensor) -> contextlib.AbstractContextManager[object]:
    """While open, products for a gradient on `hidden` states are in bf16 on a CPU that multiplies it, where that repays.

    Gradients say in which direction to go; what a step was worth is measured without any, and there nothing changes.
    """
    if (
        torch.is_grad_enabled()
        and hidden.device.type == "cpu"
        and hidden.dtype == torch.float32
        and hidden.shape[-1] >= WIDE_IN_PASSES
        and multiplies_bf16()
    ):
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """While open, this thread's torch uses so many cores."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


def available_cores() -> int:
    """Cores this process may use, fewer where OMP_NUM_THREADS says so."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, int(wish)) if wish.isdecimal() and int(wish) > 0 else cores
