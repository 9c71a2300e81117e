"""What this process has in memory, as the system counts it; loads no torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PEAK = "5"  # what clear_refs takes to start the peak anew, see proc(5)
_MUCH = 1 << 27
_least = 0  # bytes that the process has had at the least since memory was given back, where somebody looked
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What mallopt(3) calls them."""
_LARGE = 1 << 20
"""Bytes from which an allocation is a mapping of its own where memory returns at once."""
_LARGEST = 1 << 25
"""The same where it is kept: glibc takes no more."""
_END = 1 << 17
"""Freed bytes at the end of the heap that are returned, as glibc has it until something large is freed."""
_CHOICES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
)


def resident() -> int | None:
    """Bytes in memory now, pages of mapped files included; None where the system does not say."""
    return _read("VmRSS")


def peak() -> int | None:
    """The most that `resident` has been since `start_peak`, or since the process began where that is not possible."""
    if (found := _read("VmHWM")) is not None:
        return found
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def device_peak() -> int | None:
    """The most that tensors have taken of a GPU since `start_peak`; None where there is none, or none was used."""
    torch = _torch_on_gpu()
    return int(torch.cuda.max_memory_allocated()) if torch else None


def start_peak() -> None:
    """Forget the peaks of before."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_PEAK, encoding="ascii")
    if torch := _torch_on_gpu():
        torch.cuda.reset_peak_memory_stats()


def _torch_on_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def give_back() -> None:
    """Return what the allocator keeps of freed memory, so that others, and limits, see it as free."""
    global _least
    if trim := _from_libc("malloc_trim"):
        trim(0)
        _least = resident() or 0


def give_back_much() -> None:
    """The same where the process has grown by 128 MB since: for where work is in full flow.

    Pages that are returned are taken again at a price, which small models would pay for nothing.
    """
    global _least
    now = resident() or 0
    if now >= _least + _MUCH:
        give_back()
    else:
        _least = min(_least, now)


@functools.cache
def return_at_once() -> None:
    """Let the allocator return whatever is large as soon as it is freed, for as long as the process lives.

    It costs time, since every large tensor begins with pages that nobody has touched: for whoever has to keep a limit.
    """
    if option := _from_libc("mallopt"):
        option(_MMAP_THRESHOLD, _LARGE)
        option(_TRIM_THRESHOLD, _END)
        give_back()


def keep_freed() -> None:
    """Let the allocator keep 64 MB of what is freed at the end of a heap, unless somebody chose: glibc does once it has seen 32 MB freed.

    Activations of a small model are some MB. Freed there, they would go back to the system, and every page of the
    next ones would have to be cleared again: two fifths of a forward pass in fp32.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    chosen = "glibc.malloc" in tunables or any(name in os.environ for name in _CHOICES)
    if not chosen and (option := _from_libc("mallopt")):
        option(_MMAP_THRESHOLD, _LARGEST)
        option(_TRIM_THRESHOLD, 2 * _LARGEST)


@functools.cache
def _from_libc(name: str) -> Any:
    """A function of glibc; None where the system has another library."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def _read(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None
