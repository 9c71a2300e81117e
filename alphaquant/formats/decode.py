"""Stored tensors of a quantized linear, ours or other software's, back to its codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alphaquant.errors import FormatError
from alphaquant.formats.carriers import Carrier
from alphaquant.formats.packing import unpack_bytes, unpack_words
from alphaquant.formats.scales import Scales, power_of_two
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where output channels 0 to 7 lie in a word
_ORDERS = ("weight_g_idx", "g_idx")
"""Leaves that tell every input channel its group: activation order without static groups."""


def unpack(
    stored: Mapping[str, Tensor],
    carrier: Carrier,
    scheme: Scheme,
    shape: tuple[int, int],
    block_rows: int | None = None,
) -> QuantizedWeight:
    """The inverse of `stored.pack` for a weight of `shape` [out, in].

    Also one scale for the whole weight, one per `block_rows` rows, groups of scattered input channels (`g_idx`), any
    fp32 global scale. Raises FormatError naming a tensor that is missing or does not fit.
    """
    rows, cols = shape
    codes, width = _codes(stored, carrier, scheme, shape), scheme.group_width(cols)
    scale = _per_row(_scale(stored, carrier, scheme), rows, block_rows)
    zero = _zero(stored, carrier, scheme, rows)
    if zero is not None:
        zero = _per_row(zero, rows, block_rows)
    order = next((stored[leaf].long() for leaf in _ORDERS if leaf in stored), None)
    in_order = torch.arange(cols, device=codes.device) // width
    if order is None or bool((order < 0).all()) or torch.equal(order, in_order):  # -1: never set
        _require_groups(scale, scheme, rows, cols)
        return QuantizedWeight(codes, Scales(scale, zero, None, width), scheme)
    zero = None if zero is None else zero[:, order]
    alone = Scheme(scheme.format, 1, scheme.symmetric)
    return QuantizedWeight(codes, Scales(scale[:, order], zero, None, 1), alone)


def weight_shape(
    shapes: Mapping[str, tuple[int, ...]], carrier: Carrier, bits: int
) -> tuple[int, int] | None:
    """[out, in] from the shapes of the stored tensors; None where only `weight_shape` tells, or codes are missing."""
    codes = next((shapes[n] for n in ("weight_packed", "qweight", "weight") if n in shapes), None)
    if codes is None or carrier.layout == "words":
        return None
    first, second = codes
    match carrier.layout:
        case "columns":
            return second, first * 32 // bits
        case "interleaved":
            return second * 32 // bits, first
        case "elements":
            return first, second
        case _:
            return first, second * 8 // bits


def _codes(
    stored: Mapping[str, Tensor], carrier: Carrier, scheme: Scheme, shape: tuple[int, int]
) -> Tensor:
    """uint8 codes `[out, in]` as `QuantizedWeight` has them."""
    fmt, (rows, cols) = scheme.number_format, shape
    if carrier.layout == "columns":
        return unpack_words(leaf_of(stored, "qweight").T.contiguous(), fmt.bits, cols)
    if carrier.layout == "interleaved":
        return _deinterleaved(leaf_of(stored, "qweight"), rows).T.contiguous()
    if carrier.layout == "words":
        words = leaf_of(stored, "weight_packed")
        if words.shape[-1] != -(-cols * fmt.bits // 32):
            raise FormatError(
                f"weight_packed has {words.shape[-1]} words per row, {cols} weights of {fmt.bits} bits fill "
                f"{-(-cols * fmt.bits // 32)}: this is the padded layout of compressed-tensors before 0.18. "
                "Save the model again with a newer one"
            )
        return unpack_words(words, fmt.bits, cols)
    if carrier.layout == "elements":
        values = leaf_of(stored, "weight").contiguous()
        if not fmt.is_integer:
            return values.view(torch.uint8)
        return (values.to(torch.int16) - int(fmt.min_value)).to(torch.uint8)
    packed = leaf_of(stored, "weight" if carrier.layout == "quark" else "weight_packed")
    return unpack_bytes(packed, fmt.bits, cols)


def _scale(stored: Mapping[str, Tensor], carrier: Carrier, scheme: Scheme) -> Tensor:
    """fp32 scales as they are stored, global one included `[rows or fewer, groups]`."""
    fmt = scheme.number_format
    if carrier.layout in ("columns", "interleaved"):
        return leaf_of(stored, "scales").T.float().contiguous()
    scale = leaf_of(stored, "weight_scale")
    if fmt.scale_type == "e8m0":
        return power_of_two(scale.int() - 127)
    if fmt.kind == "nv":
        # consumers divide, once; a reciprocal would be rounded where the global scale is no power of two
        return scale.float() / leaf_of(stored, "weight_global_scale").float().reshape(())
    return scale.float()


def _zero(
    stored: Mapping[str, Tensor], carrier: Carrier, scheme: Scheme, rows: int
) -> Tensor | None:
    """Zero points on the signed grid `[rows or fewer, groups]`, if there are any."""
    if carrier.layout in ("columns", "interleaved"):
        return _column_zeros(stored, carrier, scheme, rows)
    return None if scheme.symmetric else _row_zeros(stored, carrier, scheme, rows)


def _column_zeros(
    stored: Mapping[str, Tensor], carrier: Carrier, scheme: Scheme, rows: int
) -> Tensor | None:
    """Zero points on the signed grid; None where all are the middle of it, as in symmetric checkpoints."""
    fmt, words = scheme.number_format, leaf_of(stored, "qzeros")
    if carrier.layout == "interleaved":
        zeros = _deinterleaved(words, rows).int()
    elif carrier.zero_offset and 32 % fmt.bits == 0:
        # GPTQModel subtracts from whole words, so that a zero point of zero borrows from its neighbour
        ones = sum(carrier.zero_offset << at for at in range(0, 32, fmt.bits))
        zeros = unpack_words(words + ones, fmt.bits, rows).int()
    else:
        zeros = (unpack_words(words, fmt.bits, rows).int() + carrier.zero_offset) % 2**fmt.bits
    middle = -int(fmt.min_value)
    if bool((zeros == middle).all()):
        return None
    return (zeros - middle).T.float().contiguous()


def _row_zeros(stored: Mapping[str, Tensor], carrier: Carrier, scheme: Scheme, rows: int) -> Tensor:
    zero = leaf_of(stored, "weight_zero_point")
    if carrier.layout != "words":
        return zero.float()  # plain integers
    bits, middle = scheme.number_format.bits, scheme.number_format.min_value
    return unpack_words(zero.T.contiguous(), bits, rows).T.float() + middle


def _deinterleaved(words: Tensor, count: int) -> Tensor:
    """AWQ's int4 words `[n, count / 8]` -> uint8 `[n, count]` in the order of channels."""
    mixed = unpack_words(words, 4, count)
    order = torch.tensor(_AWQ_ORDER, device=words.device)
    return mixed.view(len(mixed), -1, 8)[:, :, order].reshape(len(mixed), count)


def _per_row(values: Tensor, rows: int, block_rows: int | None) -> Tensor:
    """Scales (or zero points) of a tensor, a channel or a block for every row `[rows, groups]`."""
    if values.numel() == 1:
        return values.reshape(1, 1).expand(rows, 1)
    if values.dim() == 1:
        return values[:, None]
    if block_rows and values.shape[0] != rows:
        return values.repeat_interleave(block_rows, 0)[:rows]
    return values


def _require_groups(scale: Tensor, scheme: Scheme, rows: int, cols: int) -> None:
    needed = (rows, scheme.groups(cols))
    if tuple(scale.shape) != needed:
        raise FormatError(
            f"scales have shape {list(scale.shape)}; {scheme} of [{rows}, {cols}] needs {list(needed)}"
        )


def leaf_of(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """One of the stored tensors. Raises FormatError when it is missing."""
    found = stored.get(name)
    if found is None:
        raise FormatError(f"tensor {name} is missing; found {', '.join(sorted(stored)) or 'none'}")
    return found
