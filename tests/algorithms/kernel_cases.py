"""What every kernel has to do as torch does it: test functions for modules that say by which `walk` and `choose`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms import column_tile, column_walk
from alphaquant.algorithms import refine as refine_module
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.gptq import GptqOptions, gptq
from alphaquant.algorithms.refine import refine
from alphaquant.formats import choice
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, NumberFormat, code_values
from alphaquant.formats.weight import fake_quantize, find_scales
from alphaquant.linalg.hessian import inverse_factor, output_error
from tests.algorithms.test_gptq import problem

WalkTile = Callable[..., None]
Choose = Callable[..., Tensor]

CPU = torch.device("cpu")
VARIANTS = [
    (fmt, asymmetric)
    for fmt in FORMATS.values()
    if fmt.kind != "none"
    for asymmetric in ((False, True) if fmt.is_integer else (False,))
]
_ids = [f"{fmt.name}{'-asym' if asymmetric else ''}" for fmt, asymmetric in VARIANTS]


def _walked(
    walk: WalkTile, local: Tensor, coupling: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    left, values, steps = local.clone(), torch.empty_like(local), torch.empty_like(local)
    walk(left, coupling, rounding, values, steps)
    return values, steps, left


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_every_element_is_rounded_to_the_bit(
    fmt: NumberFormat, asymmetric: bool, wide_walk: WalkTile
) -> None:
    grid = torch.tensor([v for v in code_values(fmt) if abs(v) <= -fmt.min_value]).sort().values
    ties = (grid[1:] + grid[:-1]) / 2
    generator = torch.Generator().manual_seed(0)
    scattered = torch.randn(300, generator=generator) * fmt.max_value
    x = torch.cat([grid, ties, -ties, scattered, scattered * 1e-4, scattered * 1e6])
    scale = torch.rand(2, len(x), generator=generator) + 0.5
    scale[0] = 2.0**-3  # every tie stays one
    zero = torch.randint(-3, 4, scale.shape, generator=generator).float() if asymmetric else None
    group = torch.tensor([1, 0])
    rounding = Rounding(fmt, scale, zero, group, torch.ones(2))
    local = x * scale[group]
    found, _, left = _walked(wide_walk, local, torch.zeros(2, 2), rounding)
    expected = fake_quantize(local, scale[group], None if zero is None else zero[group], fmt)
    assert torch.equal(found, expected)
    if not fmt.is_integer:  # an integer has one zero
        assert torch.equal(_bits(found), _bits(expected))
    assert torch.equal(left, local)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_where_sums_are_exact_nothing_differs(
    fmt: NumberFormat, asymmetric: bool, moving: bool, walk: WalkTile
) -> None:
    batch, columns, out, groups = 5 if fmt.name == "int4" else 1, 11, 45, 3
    generator = torch.Generator().manual_seed(1)

    def whole(*size: int, limit: int) -> Tensor:
        return torch.randint(-limit, limit + 1, size, generator=generator).float()

    # eighths, coupled by whole numbers: no sum is ever rounded
    shape = (batch, columns, out)
    local, before = whole(*shape, limit=40) / 8, whole(*shape, limit=12) / 8
    coupling = whole(batch, columns, columns, limit=1)
    scale = torch.full((batch, groups, out), 0.5 if fmt.max_value > 4 else 1.0)
    scale[:, 1] *= 2
    zero = whole(batch, groups, out, limit=2) if asymmetric else None
    group = torch.randint(0, groups, (batch, columns), generator=generator)
    inverse = torch.ones(batch, columns)
    rounding = Rounding(fmt, scale, zero, group, inverse, before if moving else None)
    if fmt.codebook:  # its elements are no such fractions
        coupling = torch.zeros_like(coupling)
    found = _walked(walk, local, coupling, rounding)
    expected = _walked(column_tile.walk_tile, local, coupling, rounding)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    if not moving:  # what was rounded is read behind the walk
        assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("int3-g64", GptqOptions()),
        ("int4-g48-asym", GptqOptions(act_order=False, static_groups=False)),
        ("nvfp4", GptqOptions()),
    ],
)
def test_gptq_and_refinement_lose_as_little(
    text: str, options: GptqOptions, walk: WalkTile, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(rows=37, cols=139)
    factor = inverse_factor(hessian)
    monkeypatch.setattr(refine_module, "_serves_in_c", lambda _: False)  # which walks for itself
    found = []
    for chosen in ((walk, 128), (column_tile.walk_tile, column_tile.TILE)):
        monkeypatch.setattr(column_walk, "_walker", lambda *_, chosen=chosen: chosen)
        start = gptq(weight, factor, Scheme.parse(text), options)
        refined, _ = refine(weight, factor.damped, start)
        loss = output_error(weight - refined.dequantize(), factor.damped)
        found.append((start.loss, loss, refined.codes))
    (loss, refined_loss, codes), expected = found
    torch.testing.assert_close(loss, expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(refined_loss, expected[1], rtol=1e-4, atol=0)
    assert float((codes == expected[2]).float().mean()) > 0.999


def test_one_matrix_needs_no_batch_dimension(walk: WalkTile) -> None:
    generator = torch.Generator().manual_seed(2)
    local = torch.randn(7, 9, generator=generator)
    coupling = torch.randn(7, 7, generator=generator) / 8
    scale = (torch.randn(2, 9, generator=generator).abs() + 0.1).T.contiguous().T  # lies otherwise
    group = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    rounding = Rounding(FORMATS["int4"], scale, None, group, torch.ones(7))
    found = _walked(walk, local, coupling, rounding)
    expected = _walked(column_tile.walk_tile, local, coupling, rounding)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:])


@pytest.mark.parametrize(
    "text",
    ["int3-g64", "int4-g48-asym", "fp6-g32", "mxfp4", "nvfp4", "nf4"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_for_scales_finds_the_same(
    text: str, weighted: bool, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 5, 200, generator=generator)  # the last group is a short one
    importance = torch.rand(2, 200, generator=generator) if weighted else None
    scheme = Scheme.parse(text)
    asked: list[int] = []
    found = []
    for kernel in (lambda *given: asked.append(1) or choose(*given), None):
        monkeypatch.setattr(choice, "_kernel", lambda *_, kernel=kernel, **__: kernel)
        found.append(find_scales(weight, scheme, search="mse", importance=importance))
    assert asked
    same = found[0].scale == found[1].scale
    if found[0].zero is not None and found[1].zero is not None:
        same &= found[0].zero == found[1].zero
    assert float(same.float().mean()) > 0.99  # sums in another order may part a tie


@pytest.mark.parametrize(("fmt", "asymmetric"), VARIANTS, ids=_ids)
def test_the_search_would_be_trusted(fmt: NumberFormat, asymmetric: bool, choose: Choose) -> None:
    assert choice._agrees(choose, CPU, fmt, fmt.group_size or 24, asymmetric, True)


def test_the_walk_would_be_trusted(walk: WalkTile) -> None:
    assert column_walk._agrees(walk, CPU, FORMATS["int4"], True, True)
