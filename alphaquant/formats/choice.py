"""The best of several scales for each group, by a kernel of ours where one serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from alphaquant.formats import search_in_c
from alphaquant.formats.grid import fake_quantize
from alphaquant.formats.kernels import fused, trusted
from alphaquant.formats.scales import Scales
from alphaquant.formats.table import NumberFormat

_Kernel: TypeAlias = Callable[[Tensor, Tensor | None, Tensor, Tensor | None, NumberFormat], Tensor]


def best_of(
    tried: Callable[[], Sequence[Scales]],
    groups: Tensor,  # [..., out, groups, width]
    weights: Tensor | None,  # [..., 1, groups, width]
    fmt: NumberFormat,
    *,
    asymmetric: bool,
) -> Scales | None:
    """Of the scales that are `tried`, those of least squared error, weighted if so, the first of equals.

    None where no kernel serves.
    """
    kernel = _kernel(groups, fmt, asymmetric=asymmetric, weighted=weights is not None)
    if kernel is None:
        return None
    every = tried()
    effective = torch.stack([scales.effective for scales in every])
    zeros = torch.stack([s.zero for s in every if s.zero is not None]) if asymmetric else None
    best = kernel(groups, weights, effective, zeros, fmt)[None].long()
    whole = every[0].global_scale is None  # then effective scales are the stored ones
    stored = effective if whole else torch.stack([scales.scale for scales in every])
    scale = stored.gather(0, best)[0]
    return replace(every[0], scale=scale, zero=None if zeros is None else zeros.gather(0, best)[0])


def refitted(
    best: Scales,
    groups: Tensor,  # [..., out, groups, width]
    weights: Tensor | None,  # [..., 1, groups, width]
    fmt: NumberFormat,
    times: int,
) -> Scales | None:
    """bf16 scales, each moved so many times to the one of least squared error for its group's codes, while that is better.

    None where no kernel serves: one does in C, after it has chosen among candidates.
    """
    asymmetric, weighted = best.zero is not None, weights is not None
    kernel = _kernel(groups, fmt, asymmetric=asymmetric, weighted=weighted)
    if kernel is not search_in_c.best_candidates or best.global_scale is not None:
        return None
    moved = search_in_c.refitted(groups, weights, best.scale, best.zero, fmt, times)
    return replace(best, scale=moved)


def _kernel(
    groups: Tensor, fmt: NumberFormat, *, asymmetric: bool, weighted: bool
) -> _Kernel | None:
    """What chooses for these groups `[..., out, groups, width]`."""
    if not groups.numel() or groups.dtype != torch.float32:
        return None
    device, width = groups.device, groups.shape[-1]
    kernel: _Kernel = search_in_c.best_candidates
    if groups.is_cuda:
        if not fused(groups):
            return None
        from alphaquant.formats import search_kernel

        if width > search_kernel.WIDEST:
            return None
        kernel = search_kernel.best_candidates
    variant = ("scale search", fmt, width, asymmetric, weighted)
    agrees = trusted(
        device, variant, lambda: _agrees(kernel, device, fmt, width, asymmetric, weighted)
    )
    return kernel if agrees else None


def _agrees(
    kernel: _Kernel,
    device: torch.device,
    fmt: NumberFormat,
    width: int,
    asymmetric: bool,
    weighted: bool,
) -> bool:
    """Whether kernel and torch choose alike on one small problem; rare ties may part, as sums differ in order."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(device)

    groups = normal(2, 5, 7, width)
    scales = (normal(6, 2, 5, 7).abs() + 0.5) / fmt.max_value
    zeros = normal(6, 2, 5, 7).round() if asymmetric else None
    weights = normal(2, 1, 7, width).square() if weighted else None
    found = kernel(groups, weights, scales, zeros, fmt)
    errors = []
    for at, scale in enumerate(scales):
        zero = None if zeros is None else zeros[at].unsqueeze(-1)
        square = (fake_quantize(groups, scale.unsqueeze(-1), zero, fmt) - groups).square()
        errors.append((square if weights is None else square * weights).sum(-1))
    return bool((found == torch.stack(errors).argmin(0)).float().mean() > 0.95)
