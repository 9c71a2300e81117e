"""AdaRound: learn of every weight whether it is rounded up or down.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568). Each weight stands
between two grid values at a place h(V) of a rectified sigmoid; gradients of the output error tr((W - Q)H(W - Q)ᵀ)
move V, and a regularizer drives h to one end as its exponent falls. The Hessian says all that inputs would, so no
batches are needed. Any grid will do, that of a float format or codebook too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alphaquant.algorithms.gptq import search_of
from alphaquant.clock import timed
from alphaquant.formats.grid import neighbours
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, encode, expand, find_scales, quantize_weight

_LOW, _HIGH = -0.1, 1.1  # the sigmoid's range before it is cut to [0, 1]: so its ends are reached
_RATE = 3e-2
_BETAS = (20.0, 2.0)
_WARM_UP = 0.2  # share of the steps without a regularizer
_REGULARIZER = 30.0  # of a weight halfway; the unit is what one rounded to nearest costs in its row


@timed("learned rounding")
def adaround(
    weight: Tensor,  # [..., out, in]
    hessian: Tensor,  # [..., in, in] positive definite: damped
    energy: Tensor,  # [..., in] diagonal of the undamped one
    scheme: Scheme,
    scale_search: str = "hessian",
    *,
    steps: int = 500,
) -> QuantizedWeight:
    """Quantize under scales that are searched beforehand; no row comes out worse than rounded to nearest."""
    weight = weight.float()
    scales = find_scales(weight, scheme, **search_of(scale_search, energy))
    if scheme.number_format.kind == "none":
        return encode(weight, scales, scheme)
    nearest = quantize_weight(weight, scheme, scales).dequantize()
    scale, zero = expand(scales, weight.shape[-1])
    shift = 0.0 if zero is None else zero
    lower, upper = neighbours(weight / scale + shift, scheme.number_format)
    lower, upper = (lower - shift) * scale, (upper - shift) * scale
    chosen = _learned(weight, hessian.float(), lower, upper, nearest, steps)
    better = _row_error(weight - chosen, hessian) < _row_error(weight - nearest, hessian)
    return encode(torch.where(better.unsqueeze(-1), chosen, nearest), scales, scheme)


def _learned(
    weight: Tensor, hessian: Tensor, lower: Tensor, upper: Tensor, nearest: Tensor, steps: int
) -> Tensor:
    """One of `lower` and `upper` for each weight; all `[..., out, in]`."""
    span = upper - lower
    place = ((weight - lower) / span).nan_to_num(0.0).clamp(0.0, 1.0)
    latent = torch.logit((place - _LOW) / (_HIGH - _LOW)).requires_grad_(True)
    # in these units one regularizer suits every matrix
    unit = _row_error(weight - nearest, hessian) / weight.shape[-1]
    unit = unit.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    optimizer = torch.optim.Adam([latent], lr=_RATE)
    for step in range(steps):
        optimizer.zero_grad()
        share = _share(latent)
        values = lower + share * span
        with torch.no_grad():
            slope = -2 * ((weight - values) @ hessian) / unit
        loss = (
            slope * values
        ).sum()  # has the gradient of the error, which is a square, with one product less
        if step >= _WARM_UP * steps:
            loss = loss + _REGULARIZER * (1 - (2 * share - 1).abs() ** _beta(step / steps)).sum()
        loss.backward()
        optimizer.step()
    return torch.where(_share(latent.detach()) >= 0.5, upper, lower)


def _share(latent: Tensor) -> Tensor:
    """h(V): the share of the way from the lower neighbour to the upper one."""
    return (torch.sigmoid(latent) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _beta(done: float) -> float:
    """The regularizer's exponent, which falls along a cosine once the warm-up is over."""
    first, last = _BETAS
    progress = (done - _WARM_UP) / (1 - _WARM_UP)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _row_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Each row's share of the output error `[..., out]`."""
    return ((difference @ hessian) * difference).sum(-1)
