from __future__ import annotations

import math

import pytest
import torch

from alphaquant.linalg.hadamard import Rotation, hadamard_factors
from alphaquant.linalg.paley import paley, paley_field, prime_power

POWERS = [2**power for power in range(14)]
MODELS = [896, 1152, 1280, 1536, 1600, 2304, 2560, 2880, 3072, 3328, 3584, 3840, 4608, 5120, 5376]
MODELS += [6144, 6656, 7168, 11008, 72, 80, 96, 112]


def is_orthogonal(q: torch.Tensor) -> bool:
    return bool((q.T @ q - torch.eye(len(q), dtype=q.dtype)).abs().max() < 1e-12)


@pytest.mark.parametrize("size", POWERS + MODELS)
def test_every_size_of_known_models_has_a_hadamard_matrix(size: int) -> None:
    factors = hadamard_factors(size)
    assert factors is not None
    assert math.prod(len(factor) for factor in factors) == size
    for factor in factors:  # a Kronecker product of Hadamard matrices is one
        assert set(factor.unique().tolist()) <= {-1.0, 1.0}
        assert torch.equal(factor.T @ factor, len(factor) * torch.eye(len(factor)).double())


@pytest.mark.parametrize("size", [1, 2, 12, 24, 64, 128, 160, 896])
def test_a_rotation_is_signs_times_a_hadamard_matrix(size: int) -> None:
    rotation = Rotation(size, seed=3)
    q = rotation.matrix()
    assert rotation.is_hadamard
    assert is_orthogonal(q)
    torch.testing.assert_close(q.abs(), torch.full_like(q, size**-0.5))


@pytest.mark.parametrize(
    ("order", "field"), [(4, 3), (12, 11), (28, 27), (36, 17), (52, 25), (100, 49), (344, 343)]
)
def test_prime_powers_give_hadamard_matrices_too(order: int, field: int) -> None:
    assert paley_field(order) == field
    h = paley(order)
    assert torch.equal(h.T @ h, order * torch.eye(order, dtype=torch.float64))


def test_orders_without_a_construction_are_refused() -> None:
    for order in (1, 2, 3, 6, 10, 92, 116):
        assert paley_field(order) is None
        with pytest.raises(ValueError, match=str(order)):
            paley(order)


def test_prime_powers_are_told_from_other_numbers() -> None:
    found = {q: prime_power(q) for q in range(1, 30)}
    assert {q for q, power in found.items() if power is None} == {
        *(1, 6, 10, 12, 14, 15, 18, 20, 21, 22, 24, 26, 28),
    }
    assert (found[27], found[16], found[29]) == ((3, 3), (2, 4), (29, 1))


@pytest.mark.parametrize("size", [3, 7, 92])
def test_other_sizes_get_a_random_orthogonal_matrix(size: int) -> None:
    rotation = Rotation(size)
    assert not rotation.is_hadamard
    assert is_orthogonal(rotation.matrix())


@pytest.mark.parametrize(("size", "block"), [(96, 32), (96, 12), (56, 7), (64, None)])
def test_applying_equals_multiplying_by_the_matrix(size: int, block: int | None) -> None:
    rotation = Rotation(size, block=block, seed=1)
    x = torch.randn(5, 3, size, generator=torch.Generator().manual_seed(0))
    scale = torch.rand(size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation.apply(x), x.double() @ rotation.matrix())
    torch.testing.assert_close(
        rotation.apply(x, scale, dtype=torch.float32),
        (x.double() * scale @ rotation.matrix()).float(),
    )


@pytest.mark.parametrize(("size", "block"), [(96, 32), (96, 12), (56, 7), (64, None)])
def test_applying_from_the_left_is_the_transpose(size: int, block: int | None) -> None:
    rotation = Rotation(size, block=block, seed=1)
    w = torch.randn(size, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation.apply_left(w), rotation.matrix().T @ w.double())


def test_longer_vectors_are_turned_part_by_part() -> None:
    """As those of all heads: two heads of 12 turn like the block-diagonal matrix of both."""
    rotation = Rotation(12)
    both = torch.block_diag(rotation.matrix(), rotation.matrix())
    w = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(rotation.apply(w), w @ both)
    torch.testing.assert_close(rotation.apply_left(w), both.T @ w)


def test_a_large_matrix_is_applied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).double()
    rotation = Rotation(24)
    whole, left = rotation.apply(w), rotation.apply_left(w)
    monkeypatch.setattr("alphaquant.linalg.hadamard._CHUNK", 24 * 7)
    torch.testing.assert_close(rotation.apply(w), whole)
    torch.testing.assert_close(rotation.apply_left(w), left)


def test_blocks_do_not_mix() -> None:
    q = Rotation(96, block=32).matrix()
    inside = torch.block_diag(*[torch.ones(32, 32)] * 3).bool()
    assert not q[~inside].any()
    assert bool((q[inside].abs() > 0).all())
    assert is_orthogonal(q)
    with pytest.raises(ValueError, match="blocks of 40 do not divide 96"):
        Rotation(96, block=40)


@pytest.mark.parametrize("size", [64, 7])
def test_equal_seeds_give_equal_rotations(size: int) -> None:
    first = Rotation(size, seed=5, index=2).matrix()
    assert torch.equal(first, Rotation(size, seed=5, index=2).matrix())
    assert not torch.equal(first, Rotation(size, seed=6, index=2).matrix())
    assert not torch.equal(first, Rotation(size, seed=5, index=3).matrix())
