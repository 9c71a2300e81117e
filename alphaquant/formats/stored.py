"""A quantized linear as the tensors of its carrier: no number changes on the way. `decode` is the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.errors import FormatError
from alphaquant.formats.carriers import Carrier
from alphaquant.formats.grid import to_codes
from alphaquant.formats.packing import pack_bytes, pack_words
from alphaquant.formats.weight import QuantizedWeight

_SIGN = 0x80


def pack(weight: QuantizedWeight, carrier: Carrier, dtype: torch.dtype) -> dict[str, Tensor]:
    """The stored tensors of a weight `[out, in]` by leaf name, as `carriers.stored_tensors` describes them.

    `dtype` is that of scales where the format leaves it free: the model's own. `rounded_scales` tells how many
    it changes. Raises FormatError for a scale that it cannot hold at all.
    """
    scheme, bits = weight.scheme, weight.scheme.number_format.bits
    if carrier.layout == "columns":
        return _pack_columns(weight, carrier, dtype)
    stored = {"weight_scale": _pack_scale(weight, carrier, dtype)}
    if carrier.layout == "words":
        stored["weight_packed"] = pack_words(weight.codes, bits)
        stored["weight_shape"] = torch.tensor(weight.shape)
        if weight.scales.zero is not None:
            zeros = to_codes(weight.scales.zero, scheme.number_format)
            stored["weight_zero_point"] = pack_words(zeros.T.contiguous(), bits).T.contiguous()
        return stored
    if carrier.layout == "elements":
        integers = scheme.number_format.is_integer
        codes = weight.codes ^ _SIGN if integers else weight.codes  # two's complement from q - qmin
        stored["weight"] = codes.view(torch.int8 if integers else torch.float8_e4m3fn)
        return stored
    stored["weight" if carrier.layout == "quark" else "weight_packed"] = pack_bytes(
        weight.codes, bits
    )
    if weight.scales.global_scale is not None:
        # consumers divide by it; it is a power of two, so both ways are exact
        stored["weight_global_scale"] = 1 / weight.scales.global_scale.reshape(1)
    return stored


def _pack_columns(
    weight: QuantizedWeight, carrier: Carrier, dtype: torch.dtype
) -> dict[str, Tensor]:
    """GPTQ v1: the stream runs along the input channels, and the zero point is stored one too small."""
    (rows, cols), bits = weight.shape, weight.scheme.number_format.bits
    groups = weight.scales.scale.shape[-1]
    zeros = torch.full((groups, rows), 2 ** (bits - 1) - 1, dtype=torch.uint8)
    group = torch.arange(cols, dtype=torch.int32) // weight.scheme.group_width(cols)
    return {
        "qweight": pack_words(weight.codes, bits).T.contiguous(),
        "qzeros": pack_words(zeros, bits),
        "scales": _pack_scale(weight, carrier, dtype).T.contiguous(),
        "g_idx": group,
    }


def rounded_scales(weight: QuantizedWeight, carrier: Carrier, dtype: torch.dtype) -> int:
    """How many scales change when they are stored: bf16 ones below 2^-17 in a checkpoint that keeps fp16."""
    if weight.scheme.number_format.scale_type != "bfloat16":
        return 0
    scale = weight.scales.scale
    return int((scale.to(_scale_type(weight, carrier, dtype)).float() != scale).sum())


def _pack_scale(weight: QuantizedWeight, carrier: Carrier, dtype: torch.dtype) -> Tensor:
    scale, fmt = weight.scales.scale, weight.scheme.number_format
    if fmt.scale_type == "e8m0":
        return (scale.view(torch.int32) >> 23).to(torch.uint8)
    stored = scale.to(_scale_type(weight, carrier, dtype))
    if not bool(torch.isfinite(stored.float()).all()):
        raise FormatError(
            f"scales up to {float(scale.abs().max()):g} are too large for "
            f"{str(stored.dtype).removeprefix('torch.')}. Export as compressed-tensors, whose scales have the model's "
            "own type, and keep the model in bfloat16"
        )
    return stored


def _scale_type(weight: QuantizedWeight, carrier: Carrier, dtype: torch.dtype) -> torch.dtype:
    if weight.scheme.number_format.scale_type == "e4m3":
        return torch.float8_e4m3fn
    return torch.float16 if carrier.layout == "columns" else dtype
