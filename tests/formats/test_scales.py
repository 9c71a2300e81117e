"""Scale rules: each against its definition in exact arithmetic, and the corners of the fp32 range."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphaquant.formats.grid import fake_quantize
from alphaquant.formats.scales import Scales, e8m0_scale, expand, power_of_two, rule_scales
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, E8M0Rule, NumberFormat
from alphaquant.formats.weight import encode, find_scales

MX = {
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp6": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
}
RULES: tuple[E8M0Rule, ...] = ("floor", "even", "rceil")
SCALED = [
    Scheme.parse(name, group_size=32, symmetric=symmetric)
    for name, fmt in FORMATS.items()
    if fmt.scale_type is not None
    for symmetric in ((True, False) if fmt.is_integer else (True,))
]
SCHEMES = pytest.mark.parametrize("scheme", SCALED, ids=str)
positive_floats = st.floats(2.0**-149, float(np.finfo(np.float32).max), width=32)


def rule_exponent(top: float, fmt: NumberFormat, rule: E8M0Rule) -> int:
    """The exponent of an E8M0 scale from the rule's words, in exact arithmetic."""
    amax = Fraction(top)
    if rule == "rceil":
        exponent = math.frexp(top)[1] - 1 - fmt.max_exponent
        while Fraction(2) ** exponent * Fraction(fmt.max_value) < amax:
            exponent += 1
        return exponent
    exponent = math.frexp(top)[1] - 1
    if rule == "even":
        step = Fraction(2) ** (exponent - fmt.mantissa_bits)
        amax = round(amax / step) * step
        exponent += amax >= Fraction(2) ** (exponent + 1)
    return exponent - fmt.max_exponent


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
@given(top=positive_floats)
@settings(deadline=None, max_examples=40)
def test_e8m0_rules_follow_their_definitions(name: str, rule: E8M0Rule, top: float) -> None:
    fmt = FORMATS[name]
    exponent = min(max(rule_exponent(top, fmt, rule), -127), 127 - fmt.max_exponent)
    assert float(e8m0_scale(torch.tensor([top]), fmt, rule)) == 2.0**exponent


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
def test_e8m0_rules_at_the_edges_of_a_binade(name: str, rule: E8M0Rule) -> None:
    fmt = FORMATS[name]
    edges = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375, fmt.max_value, fmt.max_value / 2])
    up, down = torch.tensor(torch.inf), torch.tensor(0.0)
    tops = torch.cat([edges, torch.nextafter(edges, up), torch.nextafter(edges, down)])
    expected = [2.0 ** rule_exponent(top, fmt, rule) for top in tops.tolist()]
    assert e8m0_scale(tops, fmt, rule).tolist() == expected


def test_powers_of_two_equal_every_code_of_ml_dtypes_e8m0() -> None:
    codes = np.arange(255, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    found = power_of_two(torch.arange(255, dtype=torch.int32) - 127)
    np.testing.assert_array_equal(found.numpy(), expected)


def mx_blocks() -> Tensor:
    """Blocks of 32: random at every size, ties, subnormal, huge, zero and negative zero # [rows, 64]"""
    generator = torch.Generator().manual_seed(1)
    size = torch.randint(-120, 120, (600, 1), generator=generator)
    wide = torch.ldexp(torch.randn(600, 64, generator=generator), size)
    ties = torch.randint(-28, 29, (200, 64), generator=generator) / 4
    subnormal = torch.randint(-9, 10, (20, 64), generator=generator) * 2.0**-149
    outlier = torch.randn(50, 64, generator=generator)
    outlier[:, ::32] *= 1e6
    zeros = torch.zeros(4, 64)
    zeros[1:3] *= -1
    zeros[3, 40] = 3.0
    return torch.cat([wide, ties, subnormal, outlier, zeros, torch.full((1, 64), 3.4028e38)])


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("rule", RULES)
def test_mx_blocks_equal_a_conversion_by_ml_dtypes(name: str, rule: E8M0Rule) -> None:
    fmt, scheme, weight = FORMATS[name], Scheme(name), mx_blocks()
    blocks = weight.numpy().reshape(-1, 2, 32)
    tops = np.abs(blocks).max(-1)
    exponents = [rule_exponent(float(top), fmt, rule) if top else 0 for top in tops.flat]
    scale = np.exp2(np.clip(exponents, -127, 127 - fmt.max_exponent)).astype(np.float32)
    scale = scale.reshape(tops.shape).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    ratios = np.clip(blocks.astype(np.float64) / scale[..., None], -fmt.max_value, fmt.max_value)
    elements = ratios.astype(np.float32).astype(MX[name])

    quantized = encode(weight, find_scales(weight, scheme, rule=rule), scheme)

    np.testing.assert_array_equal(quantized.scales.scale.numpy(), scale)
    codes = quantized.codes.numpy().reshape(blocks.shape)
    np.testing.assert_array_equal(codes, elements.view(np.uint8))
    expected = elements.astype(np.float32) * scale[..., None]
    found = quantized.dequantize().numpy().reshape(blocks.shape)
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


def test_each_mx_format_has_the_rule_of_its_row() -> None:
    weight = mx_blocks()
    for name in MX:
        rule: E8M0Rule = "rceil" if name == "mxfp8" else "even"
        found = find_scales(weight, Scheme(name)).scale
        assert torch.equal(found, find_scales(weight, Scheme(name), rule=rule).scale)


@SCHEMES
def test_a_zero_group_has_the_scale_one_and_stays_zero(scheme: Scheme) -> None:
    weight = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    weight[1, 64:128] = -0.0
    for matrix in (weight, torch.zeros(2, 64)):
        for search in ("none", "mse"):
            scales = find_scales(matrix, scheme, search=search)
            width = scheme.group_width(matrix.shape[-1])
            empty = (matrix == 0).unflatten(-1, (-1, width)).all(-1)
            assert bool((scales.scale[empty] == 1).all())
            assert bool((encode(matrix, scales, scheme).dequantize()[matrix == 0] == 0).all())


@SCHEMES
@pytest.mark.parametrize("size", [2.0**-149, 1e-42, 1e-30, 1e30, 3.4028e38])
def test_weights_at_the_ends_of_fp32_stay_finite(scheme: Scheme, size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = (torch.rand(4, 64, generator=generator) * 2 - 1) * size
    for search in ("none", "mse"):
        scales = find_scales(weight, scheme, search=search)
        quantized = encode(weight, scales, scheme)
        assert bool(scales.scale.isfinite().all())
        assert bool(quantized.dequantize().isfinite().all())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_symmetric_integers_lose_at_most_half_a_step_at_either_end(bits: int) -> None:
    top = 2.0**bits - 1
    weight = torch.tensor([[top, -0.3 * top, 0.2 * top, 0.0], [-top, 0.3 * top, 0.2 * top, 0.0]])
    scheme = Scheme(f"int{bits}")
    scales = find_scales(weight, scheme)
    assert scales.scale.tolist() == [[2.0], [2.0]]
    quantized = encode(weight, scales, scheme)
    assert float((quantized.dequantize() - weight).abs().max()) <= 1.0
    assert int(quantized.codes[0].max()) == 2**bits - 1
    assert int(quantized.codes[1].min()) == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_asymmetric_integers_span_the_group_and_keep_zero(bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(50, 64, generator=generator) - torch.rand(50, 1, generator=generator)
    weight[:10] = weight[:10].abs() + 1.0
    weight[:, 5] = 0.0
    scheme = Scheme(f"int{bits}", 32, symmetric=False)
    scales = find_scales(weight, scheme)
    fmt = scheme.number_format
    assert scales.zero is not None
    assert torch.equal(scales.zero, scales.zero.round().clamp(fmt.min_value, fmt.max_value))
    found = encode(weight, scales, scheme).dequantize()
    scale, _ = expand(scales, 64)
    # Half a step of rounding, half a step of the rounded zero point, and the scale's own rounding.
    assert bool(((found - weight).abs() <= (1 + 2.0 ** (bits - 8)) * scale).all())
    assert bool((found[:, 5] == 0).all())


@pytest.mark.parametrize("name", ["fp4", "fp6", "fp6_e3m2", "fp8", "fp8_e5m2"])
def test_absmax_lands_on_the_largest_element(name: str) -> None:
    fmt = FORMATS[name]
    weight = torch.tensor([[0.5, -fmt.max_value * 4, 0.0], [0.25 * fmt.max_value, 0.1, 0.0]])
    assert find_scales(weight, Scheme(name)).scale.tolist() == [[4.0], [0.25]]


def test_scales_are_values_of_their_stored_type() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(4))
    for scheme in SCALED:
        for search in ("none", "mse"):
            scale = find_scales(weight, scheme, search=search).scale
            stored = {
                "bfloat16": torch.bfloat16,
                "e4m3": torch.float8_e4m3fn,
                "e8m0": torch.float8_e8m0fnu,
            }[scheme.number_format.scale_type or ""]
            assert torch.equal(scale.to(stored).float(), scale), scheme


def test_nvfp4_is_e4m3_scales_over_one_power_of_two_per_matrix() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 8, 64, generator=generator)
    weight *= torch.tensor([1e-4, 1.0, 700.0])[:, None, None]
    scales = find_scales(weight, Scheme("nvfp4"))
    assert scales.global_scale is not None
    assert scales.scale.shape == (3, 8, 4)
    for matrix, scale, shared in zip(weight, scales.scale, scales.global_scale, strict=True):
        top = float(matrix.abs().max())
        # The smallest power of two under which amax / 4 is still an E4M3 number.
        assert float(shared) == 2.0 ** math.ceil(math.log2(top / (4 * 448)))
        ratio = (matrix.unflatten(-1, (4, 16)).abs().amax(-1) / 6 / shared).numpy()
        expected = ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        np.testing.assert_array_equal(scale.numpy(), expected)


def test_columns_seen_alone_can_keep_the_scale_of_their_nvfp4_matrix() -> None:
    weight = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(6))
    whole = find_scales(weight, Scheme("nvfp4"), search="mse")
    part = find_scales(
        weight[..., 16:32], Scheme("nvfp4"), search="mse", global_scale=whole.global_scale
    )
    assert torch.equal(part.scale, whole.scale[..., 1:2])


@pytest.mark.parametrize(("group", "cols"), [(None, 50), (32, 96), (32, 100), (128, 50), (1, 7)])
def test_expand_repeats_each_scale_over_its_columns(group: int | None, cols: int) -> None:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(2, 3, cols, generator=generator)
    scheme = Scheme("int4", group, symmetric=False)
    scales = find_scales(weight, scheme)
    assert scales.scale.shape == (2, 3, scheme.groups(cols))
    scale, zero = expand(scales, cols)
    assert zero is not None
    assert scale.shape == zero.shape == weight.shape
    width = scheme.group_width(cols)
    for col in range(cols):
        assert torch.equal(scale[..., col], scales.scale[..., col // width])
        assert scales.zero is not None
        assert torch.equal(zero[..., col], scales.zero[..., col // width])


def test_a_shorter_last_group_has_the_scale_of_its_own_weights() -> None:
    weight = torch.randn(4, 100, generator=torch.Generator().manual_seed(8))
    for scheme in SCALED:
        if scheme.number_format.kind == "nv":
            continue
        for search in ("none", "mse"):
            whole = find_scales(weight, scheme, search=search)
            last = find_scales(weight[:, 96:], scheme, search=search)
            assert torch.equal(whole.scale[:, -1:], last.scale), scheme


def test_bf16_has_no_scales_and_expands_to_ones() -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(9))
    scales = find_scales(weight, Scheme("bf16"))
    assert scales.scale.shape == (3, 0)
    scale, zero = expand(scales, 10)
    assert zero is None
    found = fake_quantize(weight, scale, zero, FORMATS["bf16"])
    assert torch.equal(found, weight.bfloat16().float())


def test_scales_index_like_their_weights() -> None:
    weight = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(10))
    for scheme in SCALED:
        scales = find_scales(weight, scheme)
        for index in range(3):
            alone = find_scales(weight[index], scheme)
            assert_same(scales[index], alone)


def test_rule_scales_of_grouped_weights_ignore_the_fill() -> None:
    full = torch.tensor([[[1.0, 2.0, 3.0, 0.0]]])
    for name in ("int4", "fp8"):
        scales = rule_scales(full, Scheme(name, 4))
        assert torch.equal(scales.scale, rule_scales(full[..., :3], Scheme(name, 3)).scale)


def assert_same(found: Scales, expected: Scales) -> None:
    assert torch.equal(found.scale, expected.scale)
    assert found.group_size == expected.group_size
    for one, other in (
        (found.zero, expected.zero),
        (found.global_scale, expected.global_scale),
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one, other)
