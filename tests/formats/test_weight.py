"""Quantized weights: exact values, stable codes, honest bits, and the way through safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alphaquant.errors import ModelError, StoreError
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, code_values
from alphaquant.formats.weight import (
    QuantizedWeight,
    Scales,
    encode,
    expand,
    fake_quantize,
    find_scales,
    quantize_weight,
)

ALL = [
    Scheme.parse(name, group_size=64, symmetric=symmetric)
    for name, fmt in FORMATS.items()
    for symmetric in ((True, False) if fmt.is_integer else (True,))
]
SCHEMES = pytest.mark.parametrize("scheme", ALL, ids=str)


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator)
    weight[..., 0, :5] = 0.0
    weight[..., 1, 3] *= 40
    return weight


@SCHEMES
@given(
    seed=st.integers(0, 10**6),
    cols=st.integers(1, 150),
    search=st.sampled_from(["none", "mse"]),
)
@settings(deadline=None, max_examples=15)
def test_quantizing_the_result_again_changes_nothing(
    scheme: Scheme, seed: int, cols: int, search: str
) -> None:
    weight = torch.randn(2, 4, cols, generator=torch.Generator().manual_seed(seed))
    once = quantize_weight(weight, scheme, search=search)
    twice = quantize_weight(once.dequantize(), scheme, once.scales)
    assert torch.equal(twice.codes, once.codes)
    assert torch.equal(twice.dequantize(), once.dequantize())


@pytest.mark.parametrize("scheme", [scheme for scheme in ALL if scheme.format != "bf16"], ids=str)
def test_every_code_survives_dequantizing_and_encoding(scheme: Scheme) -> None:
    fmt = scheme.number_format
    codes = torch.tensor(
        [code for code, value in enumerate(code_values(fmt)) if abs(value) <= -fmt.min_value],
        dtype=torch.uint8,
    ).expand(30, -1)
    scales = find_scales(sample(30, codes.shape[-1]), scheme, search="mse")
    values = QuantizedWeight(codes, scales, scheme).dequantize()
    assert torch.equal(encode(values, scales, scheme).codes, codes)


@SCHEMES
def test_dequantizing_is_exact(scheme: Scheme) -> None:
    quantized = quantize_weight(sample(8, 200), scheme, search="mse")
    values = quantized.dequantize()
    assert values.dtype == torch.float32
    if scheme.number_format.kind == "none":
        expected = quantized.codes.double()
    else:
        table = torch.tensor(code_values(scheme.number_format)).double()
        scale, zero = expand(quantized.scales, 200)
        elements = table[quantized.codes.long()]
        expected = (elements - (0 if zero is None else zero.double())) * scale.double()
    if scheme.number_format.codebook:  # elements have all the digits of fp32 already
        expected = expected.float().double()
    assert torch.equal(values.double(), expected)


@SCHEMES
def test_codes_decode_to_what_fake_quantize_gives(scheme: Scheme) -> None:
    weight = sample(3, 8, 200)
    scales = find_scales(weight, scheme, search="mse")
    found = quantize_weight(weight, scheme, scales).dequantize()
    expected = fake_quantize(weight, *expand(scales, 200), scheme.number_format)
    assert torch.equal(found, expected)


def test_codes_under_an_odd_zero_point_break_ties_as_fake_quantize_does() -> None:
    scheme = Scheme("int4", None, symmetric=False)
    weight = torch.arange(-6, 7)[None] / 2
    scales = Scales(torch.ones(1, 1), torch.ones(1, 1))
    found = encode(weight, scales, scheme).dequantize()
    assert torch.equal(found, weight.round())
    assert torch.equal(found, fake_quantize(weight, *expand(scales, 13), FORMATS["int4"]))


@SCHEMES
def test_rounding_error_falls_within_what_the_bits_allow(scheme: Scheme) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    found = quantize_weight(weight, scheme, search="mse").dequantize()
    relative = float((found - weight).square().sum() / weight.square().sum())
    mantissa = scheme.number_format.mantissa_bits
    assert relative < 0.6 * 4.0**-mantissa


@SCHEMES
@pytest.mark.parametrize("shape", [(5, 64), (5, 100), (2, 3, 100), (1, 1)])
def test_bits_per_weight_equal_the_stored_bits(scheme: Scheme, shape: tuple[int, ...]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    quantized = quantize_weight(weight, scheme)
    tensors = quantized.tensors("w")
    element_bits = {"w.codes": scheme.number_format.bits, "w.zero": scheme.number_format.bits}
    stored = sum(
        tensor.numel() * element_bits.get(key, tensor.element_size() * 8)
        for key, tensor in tensors.items()
    )
    assert quantized.bits_per_weight * weight.numel() == pytest.approx(stored, rel=1e-12)
    widest = {key: int(t.max()) for key, t in tensors.items() if t.dtype == torch.uint8}
    for key in element_bits.keys() & widest.keys():
        assert widest[key] < 2**scheme.number_format.bits


@SCHEMES
def test_safetensors_bring_back_the_same_weight(scheme: Scheme, tmp_path: Path) -> None:
    quantized = quantize_weight(sample(2, 6, 100), scheme, search="mse")
    prefix = "model.layers.0.mlp.experts.down_proj"
    save_file(quantized.tensors(prefix), tmp_path / "w.safetensors")
    loaded = QuantizedWeight.from_tensors(prefix, load_file(tmp_path / "w.safetensors"), scheme)
    assert torch.equal(loaded.dequantize(), quantized.dequantize())
    assert torch.equal(loaded.scales.effective, quantized.scales.effective)
    assert loaded.bits_per_weight == quantized.bits_per_weight
    first, second = loaded.tensors(prefix), quantized.tensors(prefix)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor.view(torch.uint8), second[key].view(torch.uint8))


def test_scales_are_stored_in_their_own_types() -> None:
    weight = sample(4, 64)
    for name, dtype in (
        ("int4-asym", torch.bfloat16),
        ("fp8", torch.bfloat16),
        ("mxfp4", torch.uint8),
        ("nvfp4", torch.float8_e4m3fn),
        ("nf4", torch.float8_e4m3fn),
    ):
        tensors = quantize_weight(weight, Scheme.parse(name)).tensors("w")
        assert tensors["w.scale"].dtype == dtype
        assert tensors["w.codes"].dtype == torch.uint8
    assert quantize_weight(weight, Scheme("bf16")).tensors("w").keys() == {"w.codes"}


def test_mx_scales_are_stored_as_the_biased_exponent() -> None:
    weight = torch.full((1, 32), 6.0) * 2.0**5
    assert quantize_weight(weight, Scheme("mxfp4")).tensors("w")["w.scale"].tolist() == [[127 + 5]]


@SCHEMES
def test_an_expert_of_a_batch_is_the_weight_quantized_alone(scheme: Scheme) -> None:
    weight = sample(3, 5, 80)
    importance = torch.rand(3, 80, generator=torch.Generator().manual_seed(3))
    batch = quantize_weight(weight, scheme, search="mse", importance=importance)
    assert batch.shape == weight.shape
    for expert in range(3):
        alone = quantize_weight(weight[expert], scheme, search="mse", importance=importance[expert])
        assert torch.equal(batch[expert].codes, alone.codes)
        assert torch.equal(batch[expert].dequantize(), alone.dequantize())
        assert batch[expert].bits_per_weight == alone.bits_per_weight


@SCHEMES
def test_negative_zero_is_zero(scheme: Scheme) -> None:
    weight = torch.tensor([[-0.0, 1.0, -1.0, 0.0]])
    found = quantize_weight(weight, scheme).dequantize()
    assert bool((found[weight == 0] == 0).all())
    if scheme.number_format.exponent_bits:
        assert bool(torch.signbit(found[0, 0]))


def test_bf16_keeps_the_tensor_itself() -> None:
    weight = sample(4, 64).bfloat16()
    quantized = quantize_weight(weight, Scheme("bf16"))
    assert quantized.codes.dtype == torch.bfloat16
    assert torch.equal(quantized.codes, weight)
    assert quantized.bits_per_weight == 16


def test_weights_of_any_float_type_and_parameters_are_taken() -> None:
    weight = sample(4, 64).bfloat16()
    for scheme in ALL:
        expected = quantize_weight(weight.float(), scheme, search="mse")
        for other in (weight, weight.double(), torch.nn.Parameter(weight.float())):
            found = quantize_weight(other, scheme, search="mse")
            assert torch.equal(found.codes, expected.codes)
            assert not found.dequantize().requires_grad


def test_a_weight_that_is_not_finite_is_refused_by_name_also_under_given_scales() -> None:
    weight = sample(4, 64)
    scales = find_scales(weight, Scheme("int4"))
    weight[0, 0] = torch.nan
    for given_scales in (None, scales):
        with pytest.raises(ModelError, match=r"blocks\.3\.up"):
            quantize_weight(weight, Scheme("int4"), given_scales, name="blocks.3.up")


def test_a_missing_tensor_is_named() -> None:
    tensors = quantize_weight(sample(4, 64), Scheme("nvfp4")).tensors("w")
    del tensors["w.global_scale"]
    with pytest.raises(StoreError, match=r"w\.global_scale"):
        QuantizedWeight.from_tensors("w", tensors, Scheme("nvfp4"))
