from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alphaquant.linalg.farms import MAX_BLOCKS, block_corners, farms_alpha
from alphaquant.linalg.hill import hill_alpha


def random_weight(rows: int, cols: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))


def test_gaussian_matrices_of_every_shape_have_about_the_same_alpha() -> None:
    shapes = [(256, 384), (128, 768), (768, 128)]
    alphas = [farms_alpha(random_weight(*shape)).alpha for shape in shapes]
    assert max(alphas) - min(alphas) < 0.6
    assert sum(alphas) / len(alphas) == pytest.approx(6.4, abs=0.2)


def test_the_fit_is_that_of_all_blocks_singular_values_together() -> None:
    weight = random_weight(64, 96)
    blocks = [weight[i : i + 32, j : j + 32] for i in (0, 32) for j in (0, 32, 64)]
    pooled = torch.cat([torch.linalg.svdvals(block.double()) ** 2 for block in blocks])
    expected = hill_alpha(pooled.sort().values)
    fit = farms_alpha(weight, window=32)
    assert fit.alpha == pytest.approx(expected.alpha, rel=1e-4)
    assert fit.tail_size == expected.tail_size == 19


@pytest.mark.parametrize("shape", [(300, 200), (129, 128), (1000, 130), (5, 700)])
def test_blocks_cover_every_weight_and_stay_inside(shape: tuple[int, int]) -> None:
    side = min(128, *shape)
    seen = torch.zeros(shape, dtype=torch.bool)
    for top, left in block_corners(*shape, seed=0):
        assert 0 <= top <= shape[0] - side
        assert 0 <= left <= shape[1] - side
        seen[top : top + side, left : left + side] = True
    assert seen.all()


def test_many_blocks_are_drawn_by_the_seed_without_repetition() -> None:
    corners = block_corners(4096, 4096, seed=3)
    assert len(corners) == len(set(corners)) == MAX_BLOCKS
    assert corners == block_corners(4096, 4096, seed=3)
    assert corners != block_corners(4096, 4096, seed=4)


def test_the_same_seed_gives_the_same_alpha_and_another_seed_another() -> None:
    weight = random_weight(320, 320)
    first, again, other = (farms_alpha(weight, seed=seed, window=16) for seed in (0, 0, 1))
    assert first == again
    assert first.alpha != other.alpha


def test_a_matrix_smaller_than_the_window_is_cut_by_its_shorter_side() -> None:
    fit = farms_alpha(random_weight(16, 64))
    assert fit.tail_size == 10
    assert 2 < fit.alpha < 10


def test_a_single_row_and_a_zero_matrix_have_no_alpha() -> None:
    for weight in (random_weight(1, 64), torch.zeros(32, 64)):
        fit = farms_alpha(weight)
        assert math.isnan(fit.alpha)
        assert fit.tail_size == 0
