"""The fused kernels without a GPU: in triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alphaquant.formats.kernels import grid_constants
from alphaquant.formats.table import FORMATS

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton, which Linux alone has", allow_module_level=True)
else:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alphaquant.algorithms import column_kernel
    from alphaquant.formats import search_kernel
    from alphaquant.linalg import sturm_kernel

_SHARED = 99 << 10
"""Shared memory that every GPU since sm_80 lets a program have."""


def test_it_does_in_the_interpreter_what_torch_does(tmp_path: Path) -> None:
    # the interpreter must be asked for before triton is loaded, hence in a process of its own
    cases = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", str(cases)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


_VARIANTS = [("int4", True, True), ("fp6_e3m2", False, True), ("nf4", False, False)]
"""A format, whether it has zero points, and whether codes move (or importance counts)."""


def _compiled(
    kernel: Any,
    fixed: dict[str, Any],
    sizes: str,
    warps: int,
    capability: int,
    numbers: str = "*fp32",
) -> Any:
    """A kernel whose arguments from `sizes` on are integers, before it `numbers` in memory."""
    arguments = [name for name in kernel.arg_names if name not in fixed]
    pointers = arguments[: arguments.index(sizes)]
    types = {name: numbers if name in pointers else "i32" for name in arguments}
    types |= {name: "*i64" for name in types if name == "group" and name in pointers}
    source = ASTSource(
        kernel,
        types
        | {name: "*i32" for name in types if name == "chosen"}
        | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        attrs={(at,): [["tt.divisibility", 16]] for at in range(len(pointers))},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": False},
    )


def _stays_in_its_registers(compiled: Any, capability: int, folder: Path) -> None:
    assert compiled.metadata.shared < _SHARED
    assert "fma.rn.f32" not in compiled.asm["ptx"]  # what is stored is what was subtracted
    assert _local_bytes(compiled.asm["ptx"], capability, folder) == 0


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "asymmetric", "moving"), _VARIANTS)
def test_the_walk_compiles_for_a_gpu(
    capability: int,
    name: str,
    asymmetric: bool,
    moving: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed: dict[str, Any] = {
        "ASYMMETRIC": asymmetric,
        "MOVING": moving,
        **grid_constants(FORMATS[name]),
        "COLUMNS": column_kernel.TILE,
        "ROWS": column_kernel.ROWS,
    }
    compiled = _compiled(column_kernel._walk, fixed, "rows", column_kernel.WARPS, capability)
    _stays_in_its_registers(compiled, capability, tmp_path)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [16, 128, search_kernel.WIDEST])
@pytest.mark.parametrize(("name", "asymmetric", "weighted"), _VARIANTS)
def test_the_search_compiles_for_a_gpu(
    capability: int,
    name: str,
    asymmetric: bool,
    weighted: bool,
    width: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed: dict[str, Any] = {
        "ASYMMETRIC": asymmetric,
        "WEIGHTED": weighted,
        **grid_constants(FORMATS[name]),
        **search_kernel.tile(width),
    }
    compiled = _compiled(search_kernel._search, fixed, "total", search_kernel.WARPS, capability)
    _stays_in_its_registers(compiled, capability, tmp_path)


@pytest.mark.parametrize("capability", [80, 90])
def test_counting_eigenvalues_compiles_for_a_gpu(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed = {"LANES": sturm_kernel.LANES}
    compiled = _compiled(
        sturm_kernel._bisect, fixed, "size", sturm_kernel.WARPS, capability, "*fp64"
    )
    assert compiled.metadata.shared < _SHARED
    assert _local_bytes(compiled.asm["ptx"], capability, tmp_path) == 0


def _local_bytes(ptx: str, capability: int, folder: Path) -> int:
    """Local memory of a thread, where registers that do not suffice are spilled to, as ptxas states it."""
    source = folder / "walk.ptx"
    source.write_text(ptx)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    name = f"sm_{capability}{'a' if capability >= 90 else ''}"
    said = subprocess.run(
        [ptxas, "-v", f"--gpu-name={name}", "--fmad=false", source, "-o", folder / "walk.cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    (line,) = (line for line in said.splitlines() if "bytes stack frame" in line)
    return sum(int(part.split()[0]) for part in line.split(","))
