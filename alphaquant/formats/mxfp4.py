"""MXFP4 as gpt-oss checkpoints pack it, decoded: E2M1 elements under E8M0 scales (OCP Microscaling v1.0)."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.formats.grid import from_codes
from alphaquant.formats.scales import power_of_two
from alphaquant.formats.table import FORMATS

_BIAS = 127
_NAN = 255  # the one E8M0 code that is no power of two


def decode_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """bf16 values `[..., 32 n]` of `blocks [..., n, 16]`, two elements a byte, and `scales [..., n]`, both uint8.

    The low four bits come first. bf16 holds every product exactly; a scale that is no number gives NaN.
    """
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)  # [..., n, 32]
    scale = power_of_two(scales.int().clamp(max=_NAN - 1) - _BIAS).masked_fill(
        scales == _NAN, torch.nan
    )
    values = from_codes(codes, FORMATS["mxfp4"]) * scale[..., None]
    return values.flatten(-2).to(torch.bfloat16)
