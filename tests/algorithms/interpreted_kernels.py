"""The fused kernels in triton's interpreter, which needs no GPU; `test_kernels.py` runs this file in a process of its own."""

from __future__ import annotations

import functools

import pytest
import torch

from alphaquant.algorithms import column_kernel
from alphaquant.formats import search_kernel
from alphaquant.linalg import sturm_kernel
from tests.algorithms.kernel_cases import *  # noqa: F403
from tests.algorithms.kernel_cases import CPU, Choose, WalkTile


@pytest.fixture
def walk() -> WalkTile:
    return functools.partial(column_kernel.walk_tile, rows=64)


@pytest.fixture
def wide_walk() -> WalkTile:
    """Many rows of one program: the interpreter is slow."""
    return functools.partial(column_kernel.walk_tile, rows=2048)


@pytest.fixture
def choose() -> Choose:
    return search_kernel.best_candidates


@pytest.mark.parametrize("size", [1, 2, 5, 60, 150])
def test_counting_finds_every_eigenvalue(size: int) -> None:
    x = torch.randn(3, size, size + 3, generator=torch.Generator().manual_seed(size)).double()
    matrices = x @ x.mT
    matrices[1] = torch.eye(size)  # one eigenvalue many times
    matrices[2] = 0
    expected = torch.linalg.eigvalsh(matrices)
    found = sturm_kernel.eigenvalues(matrices.clone())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.max()))


def test_spectra_would_be_trusted() -> None:
    assert sturm_kernel._agrees(CPU)
