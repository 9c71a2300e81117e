"""The rows of the format table against ml_dtypes and the figures of the OCP specification."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from alphaquant.errors import FormatError
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, code_values, format_named

ELEMENT_TYPES = {
    "fp4": ml_dtypes.float4_e2m1fn,
    "fp6": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("name", ELEMENT_TYPES)
def test_every_code_has_the_value_that_ml_dtypes_gives(name: str) -> None:
    fmt = FORMATS[name]
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    expected = codes.view(ELEMENT_TYPES[name]).astype(np.float32)
    found = np.array(code_values(fmt), dtype=np.float32)
    np.testing.assert_array_equal(found, expected)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(expected[finite]))


# OCP MX v1.0, tables 1 and 4: largest, smallest normal, largest and smallest subnormal element.
@pytest.mark.parametrize(
    ("name", "largest", "normal", "subnormal_top", "subnormal"),
    [
        ("mxfp4", 6.0, 1.0, 0.5, 0.5),
        ("mxfp6", 7.5, 1.0, 0.875, 0.125),
        ("mxfp6_e3m2", 28.0, 0.25, 0.1875, 0.0625),
        ("mxfp8", 448.0, 2.0**-6, 0.875 * 2.0**-6, 2.0**-9),
        ("mxfp8_e5m2", 57344.0, 2.0**-14, 0.75 * 2.0**-14, 2.0**-16),
    ],
)
def test_element_grids_have_the_limits_of_the_ocp_specification(
    name: str, largest: float, normal: float, subnormal_top: float, subnormal: float
) -> None:
    fmt = FORMATS[name]
    half = [value for value in code_values(fmt)[: 2 ** (fmt.bits - 1)] if value <= largest]
    assert half == sorted(half)
    assert (half[-1], fmt.max_value) == (largest, largest)
    assert half[2**fmt.mantissa_bits] == normal == 2.0**fmt.min_exponent
    assert half[2**fmt.mantissa_bits - 1] == subnormal_top
    assert half[1] == subnormal
    assert 2.0**fmt.max_exponent <= largest < 2.0 ** (fmt.max_exponent + 1)
    assert (fmt.group_size, fmt.scale_bits) == (32, 8)


def test_fp4_is_the_eight_magnitudes_of_e2m1() -> None:
    positive = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    assert code_values(FORMATS["nvfp4"]) == (*positive, *(-value for value in positive))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_integers_use_the_full_range(bits: int) -> None:
    fmt = FORMATS[f"int{bits}"]
    assert code_values(fmt) == tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    assert (fmt.min_value, fmt.max_value) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_stored_bits_are_sign_exponent_and_mantissa() -> None:
    for fmt in FORMATS.values():
        assert fmt.bits == 1 + fmt.exponent_bits + fmt.mantissa_bits, fmt.name


# create_normal_map of bitsandbytes, as its kernels hold it
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def test_nf4_is_the_published_codebook() -> None:
    # the published one went through fp32 on its way from the quantiles
    assert code_values(FORMATS["nf4"]) == pytest.approx(NF4, rel=0, abs=2e-7)


def test_nf4_stores_eight_bits_of_scale_per_64_weights_and_one_scale_of_the_matrix() -> None:
    assert Scheme("nf4").bits_per_weight(4096, rows=4096) == 4 + 8 / 64 + 32 / 4096**2


def test_bf16_ends_where_ml_dtypes_ends() -> None:
    assert FORMATS["bf16"].max_value == float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


def test_an_unknown_format_is_refused_with_the_nearest_and_all_names() -> None:
    with pytest.raises(FormatError) as error:
        format_named("mxpf4")
    message = str(error.value)
    assert "'mxpf4'" in message
    assert "nearest: mxfp4" in message
    assert all(name in message for name in FORMATS)
