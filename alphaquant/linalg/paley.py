"""Hadamard matrices that finite fields give: Paley's two constructions (R. Paley, 1933).

For an odd prime power q, let chi be 1 on the squares of GF(q), -1 on the other elements and 0 on zero, and
let C be chi of all differences with a border of ones. Then I + C is a Hadamard matrix of order q + 1 where
q = 3 mod 4, and where q = 1 mod 4, C with each entry replaced by a 2 x 2 block is one of order 2(q + 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def paley_field(order: int) -> int | None:
    """The prime power q from which a Hadamard matrix of this order is made; None when there is none."""
    for q, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and q % 4 == remainder and prime_power(q):
            return q
    return None


def paley(order: int) -> Tensor:
    """A Hadamard matrix `[order, order]` of entries +1 and -1, in fp64.

    Raises ValueError for an order that `paley_field` has no field for.
    """
    q = paley_field(order)
    if q is None:
        raise ValueError(f"no Paley construction gives a Hadamard matrix of order {order}")
    conference = np.zeros((q + 1, q + 1), dtype=np.int64)
    conference[1:, 1:] = _characters_of_differences(q)
    conference[0, 1:] = 1
    if q % 4 == 3:
        conference[1:, 0] = -1
        matrix = conference + np.eye(q + 1, dtype=np.int64)
    else:
        conference[1:, 0] = 1
        outside = np.array([[1, 1], [1, -1]])
        diagonal = np.array([[1, -1], [-1, -1]])
        matrix = np.kron(conference, outside) + np.kron(np.eye(q + 1, dtype=np.int64), diagonal)
    return torch.from_numpy(matrix).double()


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p prime; None for all other numbers."""
    p = next((d for d in itertools.count(2) if q % d == 0 or d * d > q), q)
    p = p if q % p == 0 else q
    k, rest = 0, q
    while rest > 1 and rest % p == 0:
        rest //= p
        k += 1
    return (p, k) if q > 1 and rest == 1 else None


def _characters_of_differences(q: int) -> np.ndarray:
    """chi(a - b) for all pairs of elements of GF(q) `[q, q]`.

    An element is a polynomial over GF(p) of degree below k, numbered by its digits in base p.
    """
    found = prime_power(q)
    assert found is not None
    p, k = found
    weights = p ** np.arange(k)
    chi = np.zeros(q, dtype=np.int64)
    powers = next(cycle for cycle in _cycles(p, k) if len(cycle) == q - 1)
    # the even powers of an element that generates all others are the squares
    chi[np.array(powers) @ weights] = 1 - 2 * (np.arange(q - 1) % 2)
    digits = np.arange(q)[:, None] // weights % p  # [q, k]
    return np.asarray(chi[(digits[:, None] - digits[None]) % p @ weights])


def _cycles(p: int, k: int) -> Iterator[list[tuple[int, ...]]]:
    """Powers of x modulo each polynomial x^k - c of degree k over GF(p), until 1 comes again or never will.

    The cycle holds all p^k - 1 nonzero elements exactly when the polynomial is primitive.
    """
    one = (1,) + (0,) * (k - 1)
    for c in itertools.product(range(p), repeat=k):
        powers, element = [one], _times_x(one, c, p)
        while element != one and len(powers) < p**k - 1:
            powers.append(element)
            element = _times_x(element, c, p)
        if element == one:
            yield powers


def _times_x(element: tuple[int, ...], c: tuple[int, ...], p: int) -> tuple[int, ...]:
    """The element times x, where x^k is the polynomial `c`; lowest degree first."""
    *low, top = element
    return tuple((digit + top * c[i]) % p for i, digit in enumerate([0, *low]))
