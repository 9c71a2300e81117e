"""Pieces of fused tensors: cut out of what a file holds, and put together for another file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alphaquant.formats.mxfp4 import decode_mxfp4
from alphaquant.models.fused import BLOCKS, SCALES, Layout, Piece


def cut(piece: Piece, read: Callable[[str], Tensor], *, mxfp4: bool) -> Tensor:
    """A piece, `[out, in]` or `[out]`; `read` gives the piece's expert of a tensor in the files."""
    if mxfp4:
        outputs = decode_mxfp4(read(piece.stored + BLOCKS), read(piece.stored + SCALES))
    else:
        outputs = read(piece.stored).transpose(0, -1)  # from [in, out], or [out]
    return outputs[piece.first :: piece.step].contiguous()


def assembled(layout: Layout, name: str, value_of: Callable[[str], Tensor]) -> Tensor:
    """The tensor that a file of ours holds under `name`, from the values of its pieces, or of itself."""
    parts = layout.parts(name)
    if not parts:
        return value_of(name)
    whole: Tensor | None = None
    for part in parts:
        piece, value = layout.pieces[part], value_of(part)
        if whole is None:
            whole = torch.empty(layout.files[name].shape, dtype=value.dtype)
        whole[piece.expert].transpose(0, -1)[piece.first :: piece.step] = value.to(whole.device)
    if whole is None:
        raise ValueError(f"{name} has no pieces")
    return whole
