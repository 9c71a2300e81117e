"""FARMS: alpha from the pooled spectra of equal-sized blocks, free of shape bias (2506.06280)."""

from __future__ import annotations

import torch
from torch import Tensor

from alphaquant.linalg.hill import HillFit, hill_alpha
from alphaquant.linalg.spectrum import spectrum

WINDOW = 128
MAX_BLOCKS = 256


def farms_alpha(
    weight: Tensor,
    tail_fraction: float = 0.1,
    seed: int = 0,
    window: int = WINDOW,
    tail_size: int | None = None,
) -> HillFit:
    """Hill fit to the eigenvalues of all blocks, or of MAX_BLOCKS drawn ones, of `[out, in]`.

    Blocks are `window` wide in both directions, less in a matrix that is smaller than that. A single
    row or column has no alpha, as in `hill_alpha`.
    """
    rows, cols = weight.shape
    side = min(window, rows, cols)
    if side < 2:
        return hill_alpha(spectrum(weight), tail_fraction)
    blocks = [
        weight[top : top + side, left : left + side]
        for top, left in block_corners(rows, cols, seed, window)
    ]
    values = spectrum(torch.stack(blocks), tail_fraction=tail_fraction)
    return hill_alpha(values.flatten().sort().values, tail_fraction, tail_size)


def block_corners(rows: int, cols: int, seed: int, window: int = WINDOW) -> list[tuple[int, int]]:
    """Top left corners of the blocks: as few as cover the matrix, evenly spread, or a seeded draw."""
    side = min(window, rows, cols)
    corners = [(top, left) for top in _starts(rows, side) for left in _starts(cols, side)]
    if len(corners) <= MAX_BLOCKS:
        return corners
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(corners), generator=generator)[:MAX_BLOCKS]
    return [corners[index] for index in chosen.sort().values.tolist()]


def _starts(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]
