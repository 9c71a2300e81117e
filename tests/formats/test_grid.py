"""The rounding rule: bit-exact with ml_dtypes, and its properties on every row."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphaquant.formats.grid import fake_quantize, from_codes, round_to_grid, to_codes
from alphaquant.formats.table import FORMATS, NumberFormat, code_values

CASTS = {
    "fp4": ml_dtypes.float4_e2m1fn,
    "fp6": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "bf16": ml_dtypes.bfloat16,
}
# One row of each element grid.
GRIDS = ("int2", "int3", "int4", "int6", "int8", "nf4", *CASTS)
ROWS = pytest.mark.parametrize("fmt", [FORMATS[name] for name in GRIDS], ids=GRIDS)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


def inputs(fmt: NumberFormat) -> Tensor:
    """Random values of every size, ties and their neighbours, subnormals, saturating values and both zeros."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, generator=generator) * min(fmt.max_value, 1e3) / 3
    exponents = torch.randint(-149, 128, (40_000,), generator=generator)
    mantissas = torch.randn(40_000, generator=generator)
    wide = torch.ldexp(mantissas, exponents).clamp(-3.4e38, 3.4e38)
    exact = torch.randint(0, 2**31 - 2**23, (20_000,), generator=generator, dtype=torch.int32)
    exact = exact.view(torch.float32)
    named = [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, fmt.max_value, fmt.min_value, 3e38]
    parts = [normal, wide, exact, -exact, torch.tensor(named)]
    if fmt.kind != "none":
        grid = torch.tensor(sorted(v for v in code_values(fmt) if abs(v) <= -fmt.min_value))
        ties = (grid[1:] + grid[:-1]) / 2
        beyond = torch.tensor([fmt.max_value, -fmt.max_value]) * torch.tensor([[1.01], [1.04], [2]])
        for x in (grid, ties, beyond.flatten()):
            inf = torch.tensor(torch.inf)
            parts += [x, torch.nextafter(x, inf), torch.nextafter(x, -inf)]
    return torch.cat(parts)


@pytest.mark.parametrize("name", CASTS)
def test_rounding_equals_the_cast_of_ml_dtypes_bit_for_bit(name: str) -> None:
    fmt = FORMATS[name]
    x = inputs(fmt)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(x.numpy().astype(CASTS[name]).astype(np.float32))
    found = round_to_grid(x, fmt)
    finite = expected.isfinite()
    assert torch.equal(bits(found)[finite], bits(expected)[finite])
    # Where the cast overflows to NaN or infinity, weights saturate instead.
    assert torch.equal(found[~finite], fmt.max_value * x[~finite].sign())
    assert bool((x[~finite].abs() > fmt.max_value).all())


@pytest.mark.parametrize("name", [name for name in CASTS if name != "bf16"])
def test_codes_equal_the_bytes_of_ml_dtypes(name: str) -> None:
    fmt = FORMATS[name]
    x = inputs(fmt).clamp(-fmt.max_value, fmt.max_value)
    expected = torch.from_numpy(x.numpy().astype(CASTS[name]).view(np.uint8))
    assert torch.equal(to_codes(x, fmt), expected)


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "bf16"])
def test_every_finite_code_survives_decoding_and_encoding(name: str) -> None:
    fmt = FORMATS[name]
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    values = from_codes(codes, fmt)
    kept = values.isfinite()
    assert torch.equal(to_codes(values[kept], fmt), codes[kept])
    assert torch.equal(bits(round_to_grid(values[kept], fmt)), bits(values[kept]))


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith("int")])
def test_integers_round_half_to_even_and_saturate_at_the_full_range(name: str) -> None:
    fmt = FORMATS[name]
    x = inputs(fmt)
    expected = np.clip(np.rint(x.numpy()), fmt.min_value, fmt.max_value)
    np.testing.assert_array_equal(round_to_grid(x, fmt).numpy(), expected)


def test_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -2.5])
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -0.0, -2.0])
    assert torch.equal(bits(round_to_grid(ties, FORMATS["fp4"])), bits(expected))
    assert round_to_grid(torch.tensor([0.5, 1.5, -0.5, -1.5]), FORMATS["int4"]).tolist() == [
        0,
        2,
        0,
        -2,
    ]


finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@ROWS
@given(values=st.lists(finite_floats, min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_rounding_is_idempotent_monotone_and_within_the_grid(
    fmt: NumberFormat, values: list[float]
) -> None:
    x = torch.tensor(sorted(values))
    rounded = round_to_grid(x, fmt)
    assert torch.equal(bits(round_to_grid(rounded, fmt)), bits(rounded))
    assert bool((rounded.diff() >= 0).all())
    assert fmt.min_value <= float(rounded.min())
    assert float(rounded.max()) <= fmt.max_value


@pytest.mark.parametrize("fmt", [FORMATS[name] for name in GRIDS if name != "nf4"], ids=str)
@given(values=st.lists(finite_floats, min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_rounding_is_odd(fmt: NumberFormat, values: list[float]) -> None:
    x = torch.tensor(values).clamp(-fmt.max_value, fmt.max_value)
    assert torch.equal(bits(round_to_grid(-x, fmt)), bits(-round_to_grid(x, fmt)))


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "bf16"])
@given(values=st.lists(finite_floats, min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_no_element_is_nearer_than_the_one_chosen(name: str, values: list[float]) -> None:
    fmt = FORMATS[name]
    scaled = [value if abs(value) < 1e6 else value * fmt.max_value / 3e38 for value in values]
    x = torch.tensor(scaled)
    grid = torch.tensor([v for v in code_values(fmt) if abs(v) <= -fmt.min_value]).double()
    best = (x.double()[:, None] - grid).abs().amin(1)
    found = (round_to_grid(x, fmt).double() - x.double()).abs()
    if fmt.codebook:  # borders between its elements are rounded to fp32, as the elements are
        torch.testing.assert_close(found, best, rtol=0, atol=1e-7)
    else:
        assert torch.equal(found, best)


@ROWS
def test_infinity_saturates_and_nan_stays_nan(fmt: NumberFormat) -> None:
    found = round_to_grid(torch.tensor([torch.inf, -torch.inf, torch.nan]), fmt)
    assert found[:2].tolist() == [fmt.max_value, fmt.min_value]
    assert bool(found[2].isnan())


@ROWS
def test_rounding_leaves_its_input_alone_and_takes_any_float_type(fmt: NumberFormat) -> None:
    x = torch.linspace(-3, 3, 13)
    kept = x.clone()
    rounded = round_to_grid(x, fmt)
    fake_quantize(x, torch.ones(()), None, fmt)
    assert torch.equal(bits(x), bits(kept))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(round_to_grid(x.to(dtype), fmt), rounded)
        assert rounded.dtype == torch.float32


def test_a_zero_point_moves_the_grid_and_not_the_ties() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.5, 20.0])
    found = fake_quantize(x, torch.tensor(1.0), torch.tensor(-7.0), FORMATS["int4"])
    assert found.tolist() == [-1, 0, 0, 2, 2, 14]
