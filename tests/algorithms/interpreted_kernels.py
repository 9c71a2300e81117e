"""The fused kernels in triton's interpreter, which needs no GPU; `test_kernels.py` runs this file in a process of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms import column_kernel, column_tile, column_walk
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.refine import refine
from alphaquant.formats import search, search_kernel
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, NumberFormat, code_values
from alphaquant.formats.weight import fake_quantize, find_scales
from alphaquant.linalg import sturm_kernel
from alphaquant.linalg.hessian import inverse_factor, output_error
from tests.algorithms.test_gptq import problem

CPU = torch.device("cpu")
VARIANTS = [
    (fmt, asymmetric)
    for fmt in FORMATS.values()
    if fmt.kind != "none"
    for asymmetric in ((False, True) if fmt.is_integer else (False,))
]
_ids = [f"{fmt.name}{'-asym' if asymmetric else ''}" for fmt, asymmetric in VARIANTS]


def _walked(
    walk: Callable[..., None], local: Tensor, coupling: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    left, values, steps = local.clone(), torch.empty_like(local), torch.empty_like(local)
    walk(left, coupling, rounding, values, steps)
    return values, steps, left


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_every_element_is_rounded_to_the_bit(fmt: NumberFormat, asymmetric: bool) -> None:
    grid = torch.tensor([v for v in code_values(fmt) if abs(v) <= -fmt.min_value]).sort().values
    ties = (grid[1:] + grid[:-1]) / 2
    generator = torch.Generator().manual_seed(0)
    scattered = torch.randn(300, generator=generator) * fmt.max_value
    x = torch.cat([grid, ties, -ties, scattered, scattered * 1e-4, scattered * 1e6])
    scale = torch.rand(2, len(x), generator=generator) + 0.5
    scale[0] = 2.0**-3  # every tie stays one
    zero = torch.randint(-3, 4, scale.shape, generator=generator).float() if asymmetric else None
    rounding = Rounding(fmt, scale, zero, torch.ones(2))
    local = x * scale
    walk = functools.partial(column_kernel.walk_tile, rows=2048)
    found, _, left = _walked(walk, local, torch.zeros(2, 2), rounding)
    expected = fake_quantize(local, scale, zero, fmt)
    assert torch.equal(found, expected)
    if not fmt.is_integer:  # an integer has one zero
        assert torch.equal(_bits(found), _bits(expected))
    assert torch.equal(left, local)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_where_sums_are_exact_nothing_differs(
    fmt: NumberFormat, asymmetric: bool, moving: bool
) -> None:
    batch = 5 if fmt.name == "int4" else 1
    shape = (batch, 11, 45)
    generator = torch.Generator().manual_seed(1)

    def whole(*size: int, limit: int) -> Tensor:
        return torch.randint(-limit, limit + 1, size, generator=generator).float()

    # eighths, coupled by whole numbers: no sum is ever rounded
    local, before = whole(*shape, limit=40) / 8, whole(*shape, limit=12) / 8
    coupling = whole(batch, 11, 11, limit=1)
    scale = torch.full(shape, 0.5 if fmt.max_value > 4 else 1.0)
    zero = whole(*shape, limit=2) if asymmetric else None
    rounding = Rounding(fmt, scale, zero, torch.ones(batch, 11), before if moving else None)
    if fmt.codebook:  # its elements are no such fractions
        coupling = torch.zeros_like(coupling)
    found = _walked(functools.partial(column_kernel.walk_tile, rows=64), local, coupling, rounding)
    expected = _walked(column_tile.walk_tile, local, coupling, rounding)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    if not moving:  # what was rounded is read behind the walk
        assert torch.equal(found[2], expected[2])


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, every walk goes through the kernel."""
    walk = functools.partial(column_kernel.walk_tile, rows=64)

    def switch() -> None:
        monkeypatch.setattr(column_walk, "_walker", lambda *_: (walk, column_kernel.TILE))

    return switch


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("int3-g64", GptqOptions()),
        ("int4-g48-asym", GptqOptions(act_order=False, static_groups=False)),
        ("nvfp4", GptqOptions()),
    ],
)
def test_gptq_and_refinement_lose_as_little(
    text: str, options: GptqOptions, fused: Callable[[], None]
) -> None:
    weight, hessian = problem(rows=37, cols=139)
    factor = inverse_factor(hessian)

    def solved() -> tuple[Tensor, Tensor, Tensor]:
        found = gptq(weight, factor, Scheme.parse(text), options)
        refined, _ = refine(weight, factor.damped, found.weight)
        loss = output_error(weight - refined.dequantize(), factor.damped)
        return found.loss, loss, refined.codes

    expected = solved()
    fused()
    found = solved()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=0)
    assert float((found[2] == expected[2]).float().mean()) > 0.999


def test_one_matrix_needs_no_batch_dimension() -> None:
    generator = torch.Generator().manual_seed(2)
    local, scale = torch.randn(2, 7, 9, generator=generator)
    coupling = torch.randn(7, 7, generator=generator) / 8
    scale = (scale.abs() + 0.1).T.contiguous().T  # in another order in memory
    rounding = Rounding(FORMATS["int4"], scale, None, torch.ones(7))
    found = _walked(column_kernel.walk_tile, local, coupling, rounding)
    expected = _walked(column_tile.walk_tile, local, coupling, rounding)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:])


@pytest.mark.parametrize(
    "text",
    ["int3-g64", "int4-g48-asym", "fp6-g32", "mxfp4", "nvfp4", "nf4"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_for_scales_finds_the_same(
    text: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 5, 200, generator=generator)  # the last group is a short one
    importance = torch.rand(2, 200, generator=generator) if weighted else None
    scheme = Scheme.parse(text)
    expected = find_scales(weight, scheme, search="mse", importance=importance)
    asked = []
    choose = search_kernel.best_candidates
    monkeypatch.setattr(search, "fused", lambda _: True)
    monkeypatch.setattr(search_kernel, "runs", lambda *_, **__: True)
    monkeypatch.setattr(
        search_kernel, "best_candidates", lambda *given: asked.append(1) or choose(*given)
    )
    found = find_scales(weight, scheme, search="mse", importance=importance)
    assert asked
    same = found.scale == expected.scale
    if expected.zero is not None and found.zero is not None:
        same &= found.zero == expected.zero
    assert float(same.float().mean()) > 0.99  # sums in another order may part a tie


@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_the_search_would_be_trusted(fmt: NumberFormat, asymmetric: bool) -> None:
    assert search_kernel._agrees(CPU, fmt, fmt.group_size or 24, asymmetric, True)


def test_the_walk_would_be_trusted() -> None:
    assert column_kernel._agrees(CPU, FORMATS["int4"], True, True)


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
