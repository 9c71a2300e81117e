"""Products of matrices that are taken from what is there, with no copy of it."""

from __future__ import annotations

from torch import Tensor


def take_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Take `left` `[..., n, k]` times `right` `[..., k, m]` from `target` `[..., n, m]`, which may be part of a larger tensor."""
    if target.dim() == 2:
        target.addmm_(left, right, alpha=-1)
    elif target.dim() == 3:
        target.baddbmm_(left, right, alpha=-1)
    else:
        target -= left @ right
