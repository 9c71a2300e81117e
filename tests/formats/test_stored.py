"""What is packed is what was quantized, and what compressed-tensors makes of the same tensors."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from alphaquant.errors import FormatError
from alphaquant.export.compressed_tensors import config_group
from alphaquant.formats.carriers import CARRIERS, Carrier, carrier_of, misfit, stored_tensors
from alphaquant.formats.decode import unpack
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.stored import pack, rounded_scales
from alphaquant.formats.weight import QuantizedWeight, Scales, quantize_weight
from alphaquant.models.shard import DTYPES

SCHEMES = [
    *(f"int{bits}-{group}" for bits in (2, 3, 4, 6, 8) for group in ("g32", "perchannel")),
    *("int2-g32-asym", "int3-g64-asym", "int4-g32-asym", "int6-perchannel-asym", "int8-g32-asym"),
    *("fp8-perchannel", "fp8-g32", "mxfp4", "mxfp6", "mxfp8", "nvfp4"),
]

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.mark.parametrize("text", SCHEMES)
def test_compressed_tensors_decodes_what_was_evaluated(text: str, weight: torch.Tensor) -> None:
    carrier, quantized = quantize(text, "compressed-tensors", weight)
    stored = pack(quantized, carrier, torch.bfloat16)
    group = config_group(quantized.scheme, None, ["x"])
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(group["format"])
    decoded = compressor.decompress(stored, scheme)["weight"]
    assert decoded.dtype == torch.bfloat16
    assert torch.equal(decoded, quantized.dequantize().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("export", "text"),
    [("compressed-tensors", text) for text in SCHEMES]
    + [("gptq", f"int{bits}-{group}") for bits in (2, 3, 4, 8) for group in ("g32", "perchannel")]
    + [("quark", text) for text in ("mxfp4", "mxfp6", "mxfp6_e3m2")],
)
def test_unpacking_undoes_packing(export: str, text: str, weight: torch.Tensor) -> None:
    carrier, quantized = quantize(text, export, weight)
    stored = pack(quantized, carrier, torch.bfloat16)
    described = stored_tensors(carrier, quantized.scheme, *weight.shape, "BF16")
    assert described == {
        leaf: (NAMES[value.dtype], tuple(value.shape)) for leaf, value in stored.items()
    }
    back = unpack(stored, carrier, quantized.scheme, (64, 128))
    assert torch.equal(back.codes, quantized.codes)
    assert torch.equal(back.dequantize(), quantized.dequantize())


def test_gptq_decodes_by_its_own_formula(weight: torch.Tensor) -> None:
    carrier, quantized = quantize("int4-g32", "gptq", weight)
    stored = pack(quantized, carrier, torch.bfloat16)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = (stored["qweight"][:, None] >> shifts[None, :, None] & 15).reshape(128, 64)
    zeros = (stored["qzeros"][..., None] >> shifts & 15).reshape(-1, 64) + 1
    group = stored["g_idx"].long()
    decoded = (codes - zeros[group]) * stored["scales"].float()[group]
    assert torch.equal(decoded.T, quantized.dequantize())


def test_a_negative_scale_survives(weight: torch.Tensor) -> None:
    carrier, plain = quantize("int4-g32", "gptq", weight)
    turned = QuantizedWeight(plain.codes, Scales(-plain.scales.scale, group_size=32), plain.scheme)
    back = unpack(pack(turned, carrier, torch.bfloat16), carrier, plain.scheme, (64, 128))
    assert torch.equal(back.dequantize(), turned.dequantize())


def test_tiny_scales_are_rounded_to_fp16_and_counted(weight: torch.Tensor) -> None:
    carrier, quantized = quantize("int4-g32", "gptq", weight * 1e-4)
    count = rounded_scales(quantized, carrier, torch.bfloat16)
    assert 0 < count <= quantized.scales.scale.numel()
    stored = pack(quantized, carrier, torch.bfloat16)
    back = unpack(stored, carrier, quantized.scheme, (64, 128)).dequantize()
    # half a step of fp16's smallest numbers, times the largest code
    assert float((back - quantized.dequantize()).abs().max()) <= 8 * 2.0**-25
    assert rounded_scales(quantize("int4-g32", "gptq", weight)[1], carrier, torch.bfloat16) == 0
    packed = carrier_of(quantized.scheme, "compressed-tensors")
    assert isinstance(packed, Carrier)
    assert rounded_scales(quantized, packed, torch.bfloat16) == 0


def test_a_scale_that_fp16_cannot_hold_is_refused(weight: torch.Tensor) -> None:
    carrier, quantized = quantize("int4-g32", "gptq", weight * 1e7)
    with pytest.raises(FormatError, match=r"too large for float16.*compressed-tensors"):
        pack(quantized, carrier, torch.bfloat16)


def test_every_carrier_is_reached() -> None:
    found = {
        (carrier.export, carrier.name)
        for export in ("compressed-tensors", "gptq", "quark")
        for text in ("int8-perchannel", "int4", "fp8-perchannel", "fp8-g32", *SCHEMES)
        for activation in (None, "int8", "fp8")
        if isinstance(carrier := carrier_of(Scheme.parse(text), export, activation), Carrier)
    }
    assert found == {(row.export, row.name) for row in CARRIERS}


@pytest.mark.parametrize(
    ("text", "export", "reason"),
    [
        ("fp4-g32", "compressed-tensors", "use nvfp4 or mxfp4.*simulation only"),
        ("fp6-g32", "quark", "use mxfp6.*simulation only"),
        ("mxfp8_e5m2", "compressed-tensors", "use mxfp8"),
        ("int4-asym", "gptq", "int4 with -sym, or compressed-tensors"),
        ("int6", "gptq", "gptq does not store int6, only int2, int3.*goes into compressed-tensors"),
        ("mxfp6_e3m2", "compressed-tensors", "goes into quark"),
        ("int4", "quark", "goes into compressed-tensors or gptq"),
        ("nf4", "compressed-tensors", "only bitsandbytes.*simulation only"),
    ],
)
def test_what_has_no_carrier_says_why(text: str, export: str, reason: str) -> None:
    found = carrier_of(Scheme.parse(text), export)  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("text", "export", "shape", "reason"),
    [
        ("int4-g128", "compressed-tensors", (64, 10944), "groups of 128.*16, 32, 64$"),
        ("int4-g48", "compressed-tensors", (64, 100), "group sizes that do: -1"),
        ("int4-g20", "gptq", (64, 40), "32 channels at a time"),
        ("mxfp4", "quark", (64, 48), "groups of 32"),
    ],
)
def test_what_does_not_fit_says_why(
    text: str, export: str, shape: tuple[int, int], reason: str
) -> None:
    scheme = Scheme.parse(text)
    carrier = carrier_of(scheme, export)  # type: ignore[arg-type]
    assert isinstance(carrier, Carrier)
    assert re.search(reason, misfit(carrier, scheme, *shape) or "")
    assert misfit(carrier, scheme, 64, 3840) is None  # a multiple of every group and word here


def quantize(text: str, export: str, weight: torch.Tensor) -> tuple[Carrier, QuantizedWeight]:
    scheme = Scheme.parse(text)
    carrier = carrier_of(scheme, export)  # type: ignore[arg-type]
    assert isinstance(carrier, Carrier), carrier
    return carrier, quantize_weight(weight, scheme, search="mse")


GOLDEN = {
    ("compressed-tensors", "int2-g32"): "ec2053effde28389",
    ("compressed-tensors", "int3-g32"): "58f85fae219df7ef",
    ("compressed-tensors", "int4-g32"): "3fc08e4367f6ee4d",
    ("compressed-tensors", "int6-g32"): "7d2d10098bdfd98f",
    ("compressed-tensors", "int8-g32"): "42acaf3c54cc3439",
    ("compressed-tensors", "int4-g32-asym"): "603dd5e26422e326",
    ("compressed-tensors", "fp8-perchannel"): "62b6a755c568d38e",
    ("compressed-tensors", "mxfp4"): "ab9f34495da867e4",
    ("compressed-tensors", "mxfp6"): "3afa3671f0e17fb3",
    ("compressed-tensors", "mxfp8"): "d16b9e8086cf40c6",
    ("compressed-tensors", "nvfp4"): "89fd012c9b10f84a",
    ("gptq", "int2-g32"): "0a39f7c6bfab9d8d",
    ("gptq", "int3-g32"): "4d8069df6d87e7c1",
    ("gptq", "int4-g32"): "54df609d5a760bc1",
    ("gptq", "int8-g32"): "8cebcf831ed8f299",
    ("quark", "mxfp4"): "7fb68f3a4752172e",
    ("quark", "mxfp6"): "5d53880cb4b42270",
    ("quark", "mxfp6_e3m2"): "60d896f969db14bf",
}


@pytest.mark.parametrize(("export", "text"), GOLDEN)
def test_golden_bytes(export: str, text: str) -> None:
    """The bytes of every format; each was compared with its consumer's own decompression when it was written down."""
    values = ((torch.arange(64 * 128) * 37 % 97 - 48) / 64).reshape(64, 128)
    scheme = Scheme.parse(text)
    carrier = carrier_of(scheme, export)  # type: ignore[arg-type]
    assert isinstance(carrier, Carrier)
    stored = pack(quantize_weight(values, scheme), carrier, torch.bfloat16)
    digest = hashlib.sha256()
    for leaf in sorted(stored):
        value = stored[leaf].contiguous()
        digest.update(f"{leaf} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[export, text]
