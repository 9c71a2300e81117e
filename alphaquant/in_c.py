"""C of ours for the CPU: compiled on the machine that runs it, by the compiler that is there, and kept for the next time."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from alphaquant.store.files import cache_base

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    *("-std=gnu11", "-O3", "-shared", "-fPIC", "-fopenmp-simd"),
    "-ffp-contract=off",  # a fused product would not be what is stored
    *("-fno-math-errno", "-fno-trapping-math"),  # neither changes a result
)
_CPU_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",))
"""What makes the most of this CPU: the first that the compiler knows, or nothing."""
_SECONDS = 120
_MOST = 63
"""Threads beside the caller's: more wait for memory."""
_PACKAGE = Path(__file__).parent


@cache
def library(source: Path, **sizes: int) -> ctypes.CDLL:
    """The functions of a C file of this package, with `sizes` as its macros, compiled unless that was done before.

    Other threads run while they do. Raises RuntimeError where there is no compiler, or with what it said.
    """
    compiler = _compiler()
    macros = tuple(f"-D{name}={size}" for name, size in sizes.items())
    made_of = (_with_headers(source), _known(compiler), _FLAGS, _CPU_FLAGS, macros, _cpu())
    name = f"{source.stem}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    kept = _kept(name)
    if kept is not None and _is_ours(kept):
        with contextlib.suppress(OSError):  # damaged, or in a place from which nothing is run
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, name)
        _compile(compiler, macros, source, made)
        if kept is not None:
            _keep(made, kept)
        return ctypes.CDLL(str(made))


def _compiler() -> list[str]:
    """The command that CC names, or the first compiler that is there."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for name in wanted[:1] or _COMPILERS:
        if found := shutil.which(name):
            return [found, *wanted[1:]]
    raise RuntimeError(
        f"no C compiler ({', '.join(wanted[:1] or _COMPILERS)}): install gcc or clang"
    )


def _known(compiler: list[str]) -> tuple[object, ...]:
    """A compiler by its command, and by its file, which an upgrade replaces."""
    found = Path(compiler[0]).resolve().stat()
    return (*compiler, found.st_size, found.st_mtime_ns)


def _compile(compiler: list[str], macros: tuple[str, ...], source: Path, made: Path) -> None:
    for flags in (*_CPU_FLAGS, ()):
        made_by = [*compiler, *_FLAGS, *flags, *macros, "-I", _PACKAGE, source, "-o", made, "-lm"]
        try:
            done = subprocess.run(
                made_by, capture_output=True, text=True, check=False, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{compiler[0]} does not run ({error})") from error
        if not done.returncode and made.is_file():
            return
        said = next(filter(None, done.stderr.splitlines()), f"exit status {done.returncode}")
        if not any(flag.partition("=")[0] in done.stderr for flag in flags):
            break  # it was something else that it did not know
    raise RuntimeError(f"{compiler[0]} cannot compile {source.name}: {said}")


def _with_headers(source: Path) -> str:
    text = source.read_text(encoding="utf-8")
    headers = re.findall(r'^#include "(.+)"$', text, re.MULTILINE)
    return text + "".join(_with_headers(_PACKAGE / name) for name in headers)


def _cpu() -> str:
    """What code for this CPU depends on: a home folder may be that of several machines."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()} {platform.processor()}"


def _kept(name: str) -> Path | None:
    """Where what is compiled is kept for this user; None without a home."""
    try:
        base = cache_base()
    except RuntimeError:
        return None
    return base / f"compiled-{os.getuid()}" / name


def _keep(made: Path, kept: Path) -> None:
    """Put a copy in its place, at once and whole, where that is possible."""
    draft = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            draft = Path(file.name)
            file.write(made.read_bytes())
        draft.chmod(0o700)
        draft.replace(kept)
    except OSError:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Whether a file is there that nobody but this user, or root, can have written: it is going to be run."""
    try:
        found = (path.lstat(), path.parent.stat())
    except OSError:
        return False
    return all(x.st_uid in (os.getuid(), 0) and not x.st_mode & 0o022 for x in found)


@cache
def _threads() -> ThreadPoolExecutor | None:
    """Threads beside the caller's, all of them started: one that could not be would leave a part of somebody's work in the queue."""
    count = min((os.cpu_count() or 1) - 1, _MOST)
    if count < 1:
        return None
    pool, together = ThreadPoolExecutor(count, "alphaquant-c"), Barrier(count)
    try:
        for _ in range(count):
            pool.submit(together.wait)
    except RuntimeError:  # the system has no more
        together.abort()
        return None
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads are not inherited


def address(x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """Where a tensor's elements are. Raises ValueError where C would take them for something else."""
    if x is None:
        return None
    if x.dtype != dtype or x.device.type != "cpu":
        raise ValueError(f"C was given {x.dtype} on {x.device}, not {dtype} on the CPU")
    return x.data_ptr()


def spread(work: Any, arguments: Any, items: int, least: int) -> None:
    """Let a C function do all of so many items, in as many threads as torch uses here if each gets `least` of them.

    It takes the arguments, the item to start with and the one to stop before. Nobody is at work any more when this returns or
    raises: what addresses point to may go then.
    """
    pool = _threads()
    parts = max(1, min(torch.get_num_threads(), items // least)) if pool else 1
    edges = [ctypes.c_int64(items * part // parts) for part in range(parts + 1)]
    others: list[Future[Any]] = []
    try:
        for start, stop in pairwise(edges[1:]):
            assert pool is not None
            others.append(pool.submit(work, arguments, start, stop))
        work(arguments, *edges[:2])
        for other in others:
            other.result()
    except BaseException:  # somebody wants to stop: threads cannot be, and still write
        for other in others:
            other.cancel()
        wait(others)
        raise
