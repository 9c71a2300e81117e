"""What this machine does in a second: products of matrices, memory, files; a few tenths of a second, once per process."""

from __future__ import annotations

import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from alphaquant.linalg.products import quick_products
from alphaquant.models.device import available_cores, multiplies_bf16, torch_threads
from alphaquant.work import Rates

_PATIENCE = 0.06  # seconds of each measurement
_FILE = 1 << 24
_SIDES = {
    "cpu": 512,
    "cuda": 8192,
}  # of matrices that keep all units busy, and no longer than an undisturbed moment lasts
_COPIED = {"cpu": 1 << 26, "cuda": 1 << 28}  # bytes, more than caches hold


@functools.cache
def measured_rates(device: torch.device) -> Rates:
    """The best of several tries on a device; fp32 without TF32, as the library multiplies, and bf16 where that is multiplied.

    A CPU multiplies on one core, and all are taken to be as fast: other programs seldom leave all of them alone at
    once, and floors may not lie above what was done. Written is what a file that is forced to the disk takes, in the folder
    for temporary files; read is a file that the system has in memory, the least that reading can take.
    """
    kind = device.type
    side, count = _SIDES[kind], _COPIED[kind]
    halves = torch.bfloat16 if kind == "cuda" or multiplies_bf16() else torch.float32
    cores = available_cores() if kind == "cpu" else 1
    with torch_threads(1), quick_products():
        flops = []
        for dtype in dict.fromkeys((torch.float32, halves)):
            matrix = torch.randn(side, side, device=device).to(dtype)
            product = torch.empty_like(matrix)
            multiply = functools.partial(torch.mm, matrix, matrix, out=product)
            flops.append(cores * 2 * side**3 / _least(multiply, device))
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = []
    for threads in {1, cores}:
        with torch_threads(threads):
            copies.append(_least(lambda: target.copy_(source), device))
    moved = 2 * count / min(copies)
    try:
        read, written = _files(device)
    except OSError:  # a full disk is for the run to complain of
        read = written = moved
    return Rates(flops[0], flops[-1], moved, read, written, _name(device))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()}, {available_cores()} cores"


def _files(device: torch.device) -> tuple[float, float]:
    """Bytes per second read and written."""
    content = os.urandom(_FILE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"

        def write() -> None:
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        written = _least(write, device)
        return _FILE / _least(path.read_bytes, device), _FILE / written


def _least(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest try, behind one to warm up."""
    seconds: list[float] = []
    while sum(seconds) < _PATIENCE or len(seconds) < 2:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
