"""Codes of a few bits as bytes and words: one little-endian bit stream per row, as every packed format has it.

Element i of a row occupies the bits from i * bits on, the lowest first. Nibbles of fp4, the three bytes of
four fp6 elements and the int32 words of 2 to 8-bit integers are all this stream, seen as bytes or as words.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from alphaquant.errors import FormatError

_OCTET = 8  # so many codes fill `bits` whole bytes
_WORD = 4
_ROWS_AT_ONCE = 1 << 22  # codes that are spread to 64 bits each at one time


def pack_bytes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `[rows, n]` below 2**bits -> the stream's bytes, uint8 `[rows, ceil(n * bits / 8)]`."""
    rows, count = codes.shape
    width = -(-count * bits // 8)
    packed = torch.empty(rows, width, dtype=torch.uint8, device=codes.device)
    step = max(1, _ROWS_AT_ONCE // max(count, 1))
    for start in range(0, rows, step):
        packed[start : start + step] = _pack(codes[start : start + step], bits)[:, :width]
    return packed


def unpack_bytes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_bytes`: uint8 `[rows, count]`. Raises FormatError when the bytes are too few."""
    rows, width = packed.shape
    if width * 8 < count * bits:
        raise FormatError(
            f"{width} bytes per row hold {width * 8 // bits} elements of {bits} bits, not {count}"
        )
    codes = torch.empty(rows, count, dtype=torch.uint8, device=packed.device)
    step = max(1, _ROWS_AT_ONCE // max(count, 1))
    for start in range(0, rows, step):
        codes[start : start + step] = _unpack(packed[start : start + step], bits)[:, :count]
    return codes


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `[rows, n]` -> int32 words `[rows, ceil(n * bits / 32)]` of the same stream."""
    packed = pack_bytes(codes, bits)
    return _padded(packed, _WORD).view(torch.int32)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_words`: uint8 `[rows, count]`."""
    return unpack_bytes(words.contiguous().view(torch.uint8), bits, count)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Eight codes at a time, in one 64-bit number whose lowest `bits` bytes are the stream."""
    octets = _padded(codes, _OCTET).view(codes.shape[0], -1, _OCTET).to(torch.int64)
    number: Tensor = (octets << _shifts(bits, codes.device)).sum(-1, keepdim=True)
    stream: Tensor = number.view(dtype=torch.uint8)[..., :bits].reshape(codes.shape[0], -1)
    return stream


def _unpack(packed: Tensor, bits: int) -> Tensor:
    octets = _padded(packed, bits).view(packed.shape[0], -1, bits)
    number = _padded(octets, _OCTET).view(torch.int64)
    codes: Tensor = (number >> _shifts(bits, packed.device)) & (2**bits - 1)
    return codes.to(torch.uint8).view(packed.shape[0], -1)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(_OCTET, device=device) * bits


def _padded(values: Tensor, multiple: int) -> Tensor:
    """Zeros behind the last dimension up to a multiple; contiguous."""
    if sys.byteorder != "little":
        raise FormatError("packing views numbers as bytes and needs a little-endian machine")
    if short := -values.shape[-1] % multiple:
        values = torch.nn.functional.pad(values, (0, short))
    return values.contiguous()
