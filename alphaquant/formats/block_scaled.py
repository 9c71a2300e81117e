"""FP8 weights under one scale per block of rows and columns, as DeepSeek-V3 is published, decoded."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_block_scaled(
    elements: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The weight `[out, in]` in `dtype`, from E4M3 `elements [out, in]` and the `scales` of blocks of `block`.

    `scales` are `[ceil(out / rows), ceil(in / columns)]` of any float type; blocks at the lower and the right edge
    may be smaller. Products are taken in fp32 and rounded once.
    """
    rows, columns = block
    by_column = scales.float().repeat_interleave(columns, 1)[:, : elements.shape[1]]
    weight = torch.empty(elements.shape, dtype=dtype, device=elements.device)
    # a row of blocks at a time: in fp32 the whole weight would take more than all else that reading takes
    for at, scale in enumerate(by_column):
        part = slice(at * rows, (at + 1) * rows)
        weight[part] = elements[part].float().mul_(scale)
    return weight
