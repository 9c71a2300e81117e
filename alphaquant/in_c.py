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
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
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
"""What makes the most of this CPU: the first that the compiler takes, or nothing."""
_SECONDS = 120
_PACKAGE = Path(__file__).parent


@cache
def library(source: Path) -> ctypes.CDLL:
    """The functions of a C file of this package, compiled unless that was done before; other threads run beside them.

    Raises RuntimeError where there is no compiler, or with what it said.
    """
    compiler = _compiler()
    made_of = (_with_headers(source), compiler, _FLAGS, _cpu())
    name = f"{source.stem}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    kept = cache_base() / "compiled" / name
    if _is_ours(kept):
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, name)
        _compile(compiler, source, made)
        with contextlib.suppress(OSError):  # kept where that is possible
            kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as draft:
                draft.write(made.read_bytes())
            Path(draft.name).chmod(0o700)
            Path(draft.name).replace(kept)
        return ctypes.CDLL(str(kept if _is_ours(kept) else made))


def _compiler() -> list[str]:
    """The command that CC names, or the first compiler that is there."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for name in wanted[:1] or _COMPILERS:
        if found := shutil.which(name):
            return [found, *wanted[1:]]
    raise RuntimeError(
        f"no C compiler ({', '.join(wanted[:1] or _COMPILERS)}): install gcc or clang"
    )


def _compile(compiler: list[str], source: Path, made: Path) -> None:
    said = ""
    for flags in (*_CPU_FLAGS, ()):
        command = [*compiler, *_FLAGS, *flags, "-I", _PACKAGE, source, "-o", made, "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{compiler[0]} does not run ({error})") from error
        if not done.returncode and made.is_file():
            return
        said = next(filter(None, done.stderr.splitlines()), f"exit status {done.returncode}")
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


def _is_ours(path: Path) -> bool:
    """Whether a file is there that nobody but this user, or root, can have written: it is going to be run."""
    try:
        found = path.stat()
    except OSError:
        return False
    owners = (os.getuid(), 0) if hasattr(os, "getuid") else (found.st_uid,)
    return found.st_uid in owners and not found.st_mode & 0o022


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "alphaquant-c")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads are not inherited


def address(x: Tensor | None) -> int | None:
    """Where a tensor's elements are."""
    return None if x is None else x.data_ptr()


def spread(work: Any, arguments: Any, items: int, least: int) -> None:
    """Let a C function do all of so many items, in as many threads as torch uses here if each gets `least` of them.

    It takes the arguments, the item to start with and the one to stop before.
    """
    parts = max(1, min(torch.get_num_threads(), items // least))
    edges = [ctypes.c_int64(items * part // parts) for part in range(parts + 1)]
    others = [
        _threads().submit(work, arguments, start, stop) for start, stop in pairwise(edges[1:])
    ]
    work(arguments, *edges[:2])
    for other in others:
        other.result()
