"""Hessian of a linear's squared output error, 2/n XᵀX, and the factor of its inverse that GPTQ walks.

Leading batch dimensions (the experts of a block) are supported throughout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.clock import timed
from alphaquant.formats.grid import all_finite
from alphaquant.linalg import gram_in_c
from alphaquant.linalg.gram import add_gram, mirror, quadratic
from alphaquant.linalg.products import bf16_products, even_rows, onednn_is_faster, quick_products
from alphaquant.linalg.triangular import inverse_root, upper_inverse, upper_root

_MANY = 1 << 16
"""Elements whose rounding to bf16 changes a sum of squares by less than a ten-thousandth."""
_RAISE = 3.0  # factor between two tries of the damping


class TokenWeights:
    """How often each token counts, from `[...]`. What follows from that is found once for all that the tokens pass through."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.reshape(-1).double()  # [tokens]
        self.mass, self.squares = self.values.sum(), self.values.square().sum()
        self._root: Tensor | None = None

    def root(self, dtype: torch.dtype) -> Tensor:
        """What inputs are multiplied by before their products are summed `[tokens, 1]`."""
        if self._root is None or self._root.dtype != dtype:
            self._root = self.values.sqrt().to(dtype)[:, None]
        return self._root


class HessianAccumulator:
    """Sums XᵀX in fp32 over the batches of one input, which several linears may share; |x| too if `magnitudes` are asked for."""

    def __init__(self, cols: int, device: torch.device, *, magnitudes: bool = False) -> None:
        self.cols, self.device = cols, device
        self._total: Tensor | Callable[[], Tensor] = torch.zeros(
            cols, cols, dtype=torch.float32, device=device
        )
        self._magnitudes: Tensor | None = None
        if magnitudes:
            self._magnitudes = torch.zeros(cols, dtype=torch.float32, device=device)
        self._half = False  # whether what is below the diagonal of the total is behind
        self.tokens = 0
        # sums of weights and of their squares: fp64 on the device, numbers while tokens have no weights
        self._mass: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    @property
    def total(self) -> Tensor:
        """XᵀX `[in, in]`; a copy where it was put away."""
        if not isinstance(self._total, Tensor):
            return self._total()
        if self._half:
            mirror(self._total)
            self._half = False
        return self._total

    @property
    def magnitudes(self) -> Tensor:
        """Sum of |x| `[in]`. Raises ValueError where nobody asked for it."""
        if self._magnitudes is None:
            raise ValueError("this accumulator was made without magnitudes")
        return self._magnitudes

    def put_away(self, keep: Callable[[Tensor], Callable[[], Tensor]]) -> None:
        """Let `total` wait where `keep` puts it; what it returns brings a copy back. No more batches can be added."""
        self._total = keep(self.total)

    def update(self, x: Tensor, weights: TokenWeights | None = None) -> None:
        """Add the inputs `[..., in]` of one batch; each counts once where it has no weight."""
        flat = x.reshape(-1, x.shape[-1])
        self._count(flat.shape[0], weights)
        if self._magnitudes is not None:
            sizes = flat.abs().float()  # their sum takes a seventh of what torch's norm does
            self._magnitudes += sizes.sum(0) if weights is None else weights.values.float() @ sizes
        if weights is not None:
            flat = flat * weights.root(flat.dtype)
        total = self._total
        assert isinstance(total, Tensor), "it was put away"
        if flat.dtype == torch.bfloat16 and flat.is_cuda:
            # products of bf16 are exact in fp32, so the tensor cores lose nothing
            torch.addmm(total, flat.T, flat, out_dtype=torch.float32, out=total)
        elif flat.dtype == torch.bfloat16 and gram_in_c.runs():
            gram_in_c.add_gram(total, flat)
            self._half = True
        else:
            better = flat.dtype == torch.bfloat16 or (not flat.is_cuda and onednn_is_faster())
            even = even_rows(len(flat)) if better else 0
            if even:
                with bf16_products():
                    add_gram(total, flat[:even].float())
            if even < len(flat):
                add_gram(total, flat[even:].float())
            self._half = True

    def _count(self, tokens: int, weights: TokenWeights | None) -> None:
        """Note that so many tokens were seen."""
        self.tokens += tokens
        self._mass += tokens if weights is None else weights.mass
        self._squares += tokens if weights is None else weights.squares

    @property
    def hessian(self) -> Tensor:
        """2/n XᵀX `[in, in]`, with n the sum of the weights; zero when no token arrived."""
        return self.total * self.scale

    @property
    def scale(self) -> float:
        """What makes `hessian` of `total`."""
        return 2.0 / self.mass if self.mass > 0 else 2.0

    @property
    def mass(self) -> float:
        """Sum of the tokens' weights; their number where they have none."""
        return float(self._mass)

    @property
    def effective_tokens(self) -> float:
        """(Σw)² / Σw²: how many equally weighted tokens would tell as much (Kish, 1965)."""
        squares = float(self._squares)
        return self.mass**2 / squares if squares > 0 else 0.0


def white(cols: int, device: torch.device) -> HessianAccumulator:
    """The accumulator of uncorrelated unit inputs that no token stands behind."""
    accumulator = HessianAccumulator(cols, device)
    accumulator.total.fill_diagonal_(1)
    return accumulator


def pooled(accumulators: Sequence[HessianAccumulator]) -> Tensor | None:
    """The mean Hessian `[in, in]`, in which each counts by its mass; None when no token arrived."""
    mass = sum(accumulator.mass for accumulator in accumulators)
    if not mass:
        return None
    total: Tensor | None = None  # one after another: all of them at once would be as large again
    for accumulator in accumulators:
        part = accumulator.total
        total = torch.zeros_like(part) if total is None else total
        total.add_(part, alpha=2.0 / mass)
    return total


def shrink(hessians: Tensor, tokens: Tensor, strength: float, prior: Tensor) -> Tensor:
    """Pull each `[experts, in, in]`, which is overwritten, towards the `prior` `[in, in]`, the mean of all experts.

    The prior weighs as much as `strength * in` tokens, so an expert that few tokens reach leans on its
    block, and one that none reaches equals it. Of weighted tokens, `tokens` is the effective number.
    """
    doubt = strength * hessians.shape[-1]
    count = tokens.to(hessians.dtype)
    trust = torch.where(count > 0, count / (count + doubt), torch.zeros_like(count))
    for hessian, share in zip(hessians, trust.tolist(), strict=True):
        hessian.mul_(share).add_(prior, alpha=1 - share)
    return hessians


@dataclass(frozen=True)
class InverseFactor:
    """Triangular factors of a damped Hessian H + λI = RRᵀ with R upper, so that (H + λI)⁻¹ = UᵀU, U = R⁻¹: those at hand, the others when asked for."""

    damped: Tensor  # [..., in, in] H + λI
    damping: Tensor  # [...] share of the mean diagonal that was added
    energy: Tensor  # [..., in] diagonal of H itself: zero where no input arrives
    factor: Tensor | None = None
    """R # [..., in, in]"""
    ordered: tuple[Tensor, Tensor] | None = None
    """Columns, those of the most energy first `[..., in]`, and U of the matrix in that order `[..., in, in]`."""

    @functools.cached_property
    def root(self) -> Tensor:
        """R `[..., in, in]`."""
        return _sure(upper_root, self.damped) if self.factor is None else self.factor

    @functools.cached_property
    @timed("factor")
    def upper(self) -> Tensor:
        """U `[..., in, in]`, whose rows tell how later columns make up for an error."""
        return upper_inverse(self.root)

    def whiten(self, rows: Tensor) -> Tensor:
        """Coordinates `[..., out, in]` of `rows` in which r (H + λI)⁻¹ rᵀ is a plain square."""
        order, upper = self._at_hand
        if order is not None:
            rows = rows.gather(-1, order[..., None, :].expand_as(rows))
        with quick_products():
            return rows @ upper.mT

    def solve_white(self, white: Tensor) -> Tensor:
        """r (H + λI)⁻¹ `[..., out, in]` of rows that are `whiten`ed."""
        order, upper = self._at_hand
        with quick_products():
            found = white @ upper
        if order is None:
            return found
        return torch.empty_like(found).scatter_(-1, order[..., None, :].expand_as(found), found)

    @property
    def _at_hand(self) -> tuple[Tensor | None, Tensor]:
        """The order of columns in which there is a factor, None as they are, and U in it."""
        return self.ordered or (None, self.upper)

    @property
    def conditional_variance(self) -> Tensor:
        """1 / U_ii² `[..., in]`: squared error left by rounding a column after later ones have compensated."""
        return self.root.diagonal(dim1=-2, dim2=-1).square()

    @functools.cached_property
    @timed("factor")
    def by_energy(self) -> tuple[Tensor, Tensor]:
        """The columns with the most energy first `[..., in]`, and U of the matrix in that order `[..., in, in]`."""
        if self.ordered is not None:
            return self.ordered
        order = _most_first(self.energy)
        return order, _sure(inverse_root, _in_order(self.damped, order))


def _most_first(energy: Tensor) -> Tensor:
    return energy.argsort(dim=-1, descending=True, stable=True)


def _in_order(matrix: Tensor, order: Tensor) -> Tensor:
    """Symmetric matrices `[..., in, in]` with rows and columns in an `order` `[..., in]`."""
    found = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    every = (x.reshape(-1, *x.shape[keep:]) for x, keep in ((matrix, -2), (order, -1), (found, -2)))
    for one, columns, there in zip(*every, strict=True):
        torch.index_select(one.index_select(0, columns), 1, columns, out=there)
    return found


def _sure(factored: Callable[[Tensor], tuple[Tensor, Tensor]], matrix: Tensor) -> Tensor:
    """A factor of a matrix that is known to have one in another order: what fp32's rounding forbids in this one, fp64 finds."""
    found, failed = factored(matrix)
    return factored(matrix.double())[0].to(matrix.dtype) if bool(failed.any()) else found


def damp(hessian: Tensor, damping: Tensor | float) -> Tensor:
    """H + damping * mean(diag H) I; the identity is added to a Hessian that no input reached.

    Dead columns (no input reaches them) are uncoupled from all others: they are rounded and disturb nobody.
    """
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    share = torch.as_tensor(damping, dtype=hessian.dtype, device=hessian.device)
    added = torch.where(mean > 0, share[..., None] * mean, torch.ones_like(mean))
    damped = hessian.clone(memory_format=torch.contiguous_format)
    damped.diagonal(dim1=-2, dim2=-1).add_(added)
    return damped


@timed("factor")
def inverse_factor(
    hessian: Tensor, damping: float = 0.01, *, by_energy: bool = False
) -> InverseFactor:
    """Factor of the inverse of a damped Hessian `[..., in, in]`, from one Cholesky: `by_energy` for who walks columns so.

    Damping is raised threefold for the entries whose factor does not exist. Raises ValueError when the
    Hessian holds NaN or infinity.
    """
    if not all_finite(hessian):
        raise ValueError(
            "the Hessian holds NaN or infinite values: the calibration inputs overflowed"
        )
    if hessian.dim() == 3 and _repeated(hessian):
        one, count = inverse_factor(hessian[0], damping, by_energy=by_energy), len(hessian)
        return InverseFactor(
            one.damped.expand(count, -1, -1),
            one.damping.expand(count),
            one.energy.expand(count, -1),
            None if one.factor is None else one.factor.expand(count, -1, -1),
            None if one.ordered is None else _repeat(one.ordered, count),
        )
    share = torch.full(hessian.shape[:-2], damping, dtype=hessian.dtype, device=hessian.device)
    diagonal = _diagonal(hessian)
    if diagonal is not None and bool(
        ((damping > 0) | (diagonal > 0)).all() & (diagonal >= 0).all()
    ):
        damped = damp(hessian, share)
        return InverseFactor(damped, share, diagonal, damped.sqrt())
    energy = hessian.diagonal(dim1=-2, dim2=-1)
    order = _most_first(energy) if by_energy else None
    while True:
        damped = damp(hessian, share)
        if order is None:
            root, failed = upper_root(damped)
            found = InverseFactor(damped, share, energy, root)
        else:
            upper, failed = inverse_root(_in_order(damped, order), used_up=True)
            found = InverseFactor(damped, share, energy, ordered=(order, upper))
        if not bool(failed.any()):
            return found
        share = torch.where(failed, (share * _RAISE).clamp(min=1e-4), share)


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """tr(D H Dᵀ) of `[..., out, in]` and `[..., in, in]`: mean squared output error times two."""
    if (energy := _diagonal(hessian)) is not None:
        return (difference * energy[..., None, :]).mul_(difference).sum((-2, -1))
    return quadratic(difference, hessian)


def near_output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """`output_error` to a ten-thousandth, from differences in bf16 where that takes a fraction of the time.

    Only for what has not been fitted to the Hessian, such as weights and what plain rounding leaves of them. Rounding to bf16
    is independent from element to element: it adds 1e-6 of Σd²H_ii, which is what such differences cost, and what it has in
    common with them vanishes where there are many.
    """
    many = difference.shape[-2] * difference.shape[-1] >= _MANY
    narrow = difference.dtype == hessian.dtype == torch.float32 and not difference.is_cuda
    if not many or not narrow or not gram_in_c.runs() or _diagonal(hessian) is not None:
        return output_error(difference, hessian)
    rows = difference.to(torch.bfloat16).reshape(-1, *difference.shape[-2:])
    totals = hessian.expand(*difference.shape[:-2], -1, -1).reshape(-1, *hessian.shape[-2:])
    found = [gram_in_c.quadratic(*pair) for pair in zip(rows, totals, strict=True)]
    return torch.tensor(found, device=difference.device).view(difference.shape[:-2])


def _diagonal(hessian: Tensor) -> Tensor | None:
    """The diagonal `[..., in]` of Hessians that are nothing else, as those of white inputs; None for others.

    Products with them are those with a vector, which saves nearly all of rounding to nearest without tokens.
    """
    if _repeated(hessian):
        one = _diagonal(hessian[0])
        return None if one is None else one.expand(len(hessian), *one.shape)
    if bool(hessian[..., 0, 1:].any()):
        return None
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    return None if hessian.count_nonzero() != diagonal.count_nonzero() else diagonal


def _repeat(ordered: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The same for so many matrices that are one in memory."""
    order, upper = ordered
    return order.expand(count, -1), upper.expand(count, -1, -1)


def _repeated(hessian: Tensor) -> bool:
    """Whether all entries of the first dimension are one matrix in memory."""
    return hessian.dim() > 2 and len(hessian) > 1 and hessian.stride(0) == 0
